"""tudsr in ComfyUI: one node, which enlarges images by the Upscaler of the light runtime."""

from .nodes import TudsrUpscale

NODE_CLASS_MAPPINGS = {"TudsrUpscale": TudsrUpscale}
NODE_DISPLAY_NAME_MAPPINGS = {"TudsrUpscale": "Upscale Image (tudsr)"}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
