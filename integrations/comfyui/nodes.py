"""The node. torch is ComfyUI's own: tensors become arrays on their way in, arrays tensors on their way out.

Images are float32 (B, H, W, C) in [0, 1], C = 3, or 4 with alpha.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

COLORS = ("lowfreq", "wavelet", "adain", "none")
DEVICES = ("auto", "cpu", "cuda")
WRAPS = ("none", "x", "xy")


class TudsrUpscale:
    """Enlarges every image of a batch. The engines stay loaded until another bundle or device comes."""

    CATEGORY = "image/upscaling"
    DESCRIPTION = (
        "Enlarges by any scale from 1 to 32 in tiles without seams, to exact size. Runs on a CPU, too."
    )
    FUNCTION = "upscale"
    RETURN_TYPES = ("IMAGE",)

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _loaded: ClassVar[tuple[tuple[str, str], Any] | None] = None
    """Bundle and device, and the Upscaler that was made for them."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """What ComfyUI shows; names and ranges are those of `tudsr upscale`."""
        number = {"min": 0.0, "max": 1.0, "step": 0.05}
        return {
            "required": {
                "image": ("IMAGE",),
                "scale": ("FLOAT", {"default": 4.0, "min": 1.0, "max": 32.0, "step": 0.1}),
                "strength": (
                    "FLOAT",
                    {**number, "default": 1.0, "tooltip": "How much of the model's change is made."},
                ),
                "bundle": (
                    "STRING",
                    {"default": "nano", "tooltip": "nano, the folder of a bundle, or hf:OWNER/NAME."},
                ),
            },
            "optional": {
                "color": (list(COLORS), {"default": "lowfreq", "tooltip": "Colour correction."}),
                "wrap": (
                    list(WRAPS),
                    {"default": "none", "tooltip": "Edges that meet: panoramas x, textures xy."},
                ),
                "device": (list(DEVICES), {"default": "auto"}),
            },
        }

    def upscale(
        self,
        image: Any,
        scale: float,
        strength: float,
        bundle: str,
        color: str = "lowfreq",
        wrap: str = "none",
        device: str = "auto",
    ) -> tuple[Any]:
        """The batch, each side floor(side scale + 0.5) px long.

        Raises:
            RuntimeError: what tudsr says of wrong settings, bundles and devices, with what to do. ComfyUI's
            own exception, when the user interrupts.
        """
        import torch

        from tudsr_runtime.errors import TudsrError

        pictures = image.detach().cpu().numpy().astype(np.float32).clip(0, 1)
        try:
            with self._lock:
                upscaler = self._upscaler(bundle, device).with_look(strength=strength, color=color, wrap=wrap)
                larger = [
                    upscaler.upscale(picture, scale, progress=_progress(number, len(pictures)))
                    for number, picture in enumerate(pictures)
                ]
        except TudsrError as error:
            raise RuntimeError(f"{error}. Try: {error.hint}" if error.hint else str(error)) from error
        return (torch.from_numpy(np.stack(larger)),)

    @classmethod
    def _upscaler(cls, bundle: str, device: str) -> Any:
        """The one of that bundle and device; another one gives its memory back first."""
        from tudsr_runtime import Upscaler

        if cls._loaded is not None and cls._loaded[0] == (bundle, device):
            return cls._loaded[1]
        if cls._loaded is not None:
            cls._loaded[1].close()
            cls._loaded = None
        upscaler = Upscaler(bundle, device=device, notify=lambda text: print(f"tudsr: {text}"))
        print(f"tudsr: {upscaler.choice.in_short(upscaler.bundle.manifest.name)}")
        cls._loaded = (bundle, device), upscaler
        return upscaler


def _progress(number: int, count: int) -> Callable[[int, int], None]:
    """Tells ComfyUI about the tiles of image `number` of `count`; raises its exception when interrupted."""
    from comfy.model_management import throw_exception_if_processing_interrupted
    from comfy.utils import ProgressBar

    bar = ProgressBar(1)

    def tell(done: int, total: int) -> None:
        throw_exception_if_processing_interrupted()
        bar.update_absolute(number * total + done, count * total)

    return tell
