"""`UNet2DConditionModel`: Stable Diffusion 1.5, 2.1, XL and their Turbo versions, and nano."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from tudsr_train.backbones.backbone import POOLED, PROMPT, Backbone, Conditions, expanded
from tudsr_train.bases.encoders import clip_encoder, clip_tokenizer

if TYPE_CHECKING:
    from diffusers import ModelMixin

TARGETS = (
    "conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", "to_k", "to_q", "to_v", "to_out.0",
)  # fmt: skip
"""Layers that get a LoRA, by the end of their name: 194 modules of the UNet of Stable Diffusion 2.1-base,
25.257 M parameters at rank 32. The paper gives the rank only; the list is its author's earlier code's."""
LONG_TARGETS = (*TARGETS, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
"""The transformers' projections and feed-forward layers as well (OSEDiff, PiSA-SR): 258 modules, 32.446 M."""
XL = "text_time"
"""`addition_embed_type` of Stable Diffusion XL: a pooled prompt and sizes are conditions too."""
XL_CELL = 8
"""Pixels of a cell of XL's latent, in which `sample_size` counts."""


class UNet(Backbone):
    """A UNet; with XL's added conditions where it has them."""

    name, part, folder, component, output_layer = "UNet2DConditionModel", "UNet", "unet", "unet", "conv_out"
    lora_targets: ClassVar = {"standard": TARGETS, "long": LONG_TARGETS}

    def channels(self, network: ModelMixin) -> tuple[int, int]:
        return network.config.in_channels, network.config.out_channels

    def cells(self, network: ModelMixin) -> int:
        # it halves its latent between blocks, and cannot join halves of an odd edge again
        return int(2 ** (len(network.config.block_out_channels) - 1))

    def widths(self, network: ModelMixin) -> dict[str, int]:
        config = network.config
        found = {PROMPT: config.cross_attention_dim}
        if config.get("addition_embed_type") == XL:
            sizes = 6 * config.addition_time_embed_dim
            found[POOLED] = config.projection_class_embeddings_input_dim - sizes
        return found

    def refuse(self, network: ModelMixin) -> None:
        needed = network.config.addition_embed_type
        if needed not in (None, XL):
            raise ValueError(f"its UNet needs more than a prompt ({needed})")

    def predict(self, network: ModelMixin, z: Tensor, t: Tensor, c: Conditions) -> Tensor:
        added: dict[str, Any] = {}
        if POOLED in c:
            conditions = {"text_embeds": expanded(c[POOLED], z), "time_ids": self.sizes(network, z)}
            added["added_cond_kwargs"] = conditions
        prediction: Tensor = network(z, t, expanded(c[PROMPT], z), return_dict=False, **added)[0]
        return prediction

    @staticmethod
    def sizes(network: Any, z: Tensor) -> Tensor:
        """XL's (original size, crop, target size), each the size that the network was made for, as its own
        pipeline says it: (B, 6)."""
        side = network.config.sample_size * XL_CELL
        return torch.tensor([side, side, 0, 0, side, side], dtype=z.dtype, device=z.device).expand(len(z), -1)

    def encode(self, folder: Path, network: ModelMixin, prompt: str) -> Conditions:
        from tudsr_train.bases.prompt import encode_prompt

        if POOLED not in self.widths(network):
            return {PROMPT: encode_prompt(folder, prompt)}
        from diffusers import StableDiffusionXLPipeline

        pipeline = StableDiffusionXLPipeline(
            vae=None,
            unet=None,
            scheduler=None,
            text_encoder=clip_encoder(folder, ""),
            tokenizer=clip_tokenizer(folder, ""),
            text_encoder_2=clip_encoder(folder, "_2", projected=True),
            tokenizer_2=clip_tokenizer(folder, "_2"),
            add_watermarker=False,
        )
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompt, device=torch.device("cpu"), do_classifier_free_guidance=False
        )
        return {PROMPT: embeds.float(), POOLED: pooled.float()}
