"""`FluxTransformer2DModel`: FLUX.1 dev and schnell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from tudsr_train.backbones.backbone import POOLED, PROMPT, Conditions, Transformer, expanded
from tudsr_train.backbones.sd3 import ATTENTION
from tudsr_train.bases.encoders import (
    clip_encoder,
    clip_tokenizer,
    large_encoder,
    large_tokenizer,
    require_room,
)

if TYPE_CHECKING:
    from diffusers import ModelMixin

FEED_FORWARD = (
    "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out",
)  # fmt: skip
GUIDANCE = 1.0
"""What dev, which was distilled from guided steps, is told: of a weight of 1 guidance changes nothing."""
T5_TOKENS = 512
"""How many tokens the T5 gives, as in diffusers' pipeline."""
PACK = 2
"""Side of the square of latent cells that makes a token."""


class Flux(Transformer):
    """Picture and text tokens attend to each other; each token is told where it is."""

    name = "FluxTransformer2DModel"
    lora_targets: ClassVar = {"standard": ATTENTION, "long": (*ATTENTION, *FEED_FORWARD)}
    time_unit = 1.0

    def channels(self, network: ModelMixin) -> tuple[int, int]:
        config = network.config
        return config.in_channels // PACK**2, (config.out_channels or config.in_channels) // PACK**2

    def cells(self, network: ModelMixin) -> int:  # noqa: ARG002 - the same for all
        return PACK

    def widths(self, network: ModelMixin) -> dict[str, int]:
        config = network.config
        return {PROMPT: config.joint_attention_dim, POOLED: config.pooled_projection_dim}

    def predict(self, network: ModelMixin, z: Tensor, t: Tensor, c: Conditions) -> Tensor:
        height, width = z.shape[-2:]
        ids = positions(height // PACK, width // PACK, z)
        guided: dict[str, Any] = {}
        if network.config.guidance_embeds:
            guided["guidance"] = torch.full_like(t, GUIDANCE)
        tokens = network(
            hidden_states=packed(z),
            encoder_hidden_states=expanded(c[PROMPT], z),
            pooled_projections=expanded(c[POOLED], z),
            timestep=t,
            img_ids=ids,
            txt_ids=ids.new_zeros(c[PROMPT].shape[1], 3),
            return_dict=False,
            **guided,
        )[0]
        return unpacked(tokens, height, width)

    def ids(self, network: ModelMixin, c: Conditions, side: int) -> Tensor:  # noqa: ARG002 - the same for all
        here = positions(side // PACK, side // PACK, c[PROMPT])
        return torch.cat([here.new_zeros(c[PROMPT].shape[1], 3), here])

    def encode(self, folder: Path, network: ModelMixin, prompt: str) -> Conditions:
        from diffusers import FluxPipeline

        pipeline = FluxPipeline(
            scheduler=None,
            vae=None,
            text_encoder=clip_encoder(folder, ""),
            tokenizer=clip_tokenizer(folder, ""),
            text_encoder_2=large_encoder(folder, "_2"),
            tokenizer_2=large_tokenizer(folder, "_2"),
            transformer=network,
        )
        require_room(pipeline.tokenizer, prompt, pipeline.tokenizer_max_length)
        embeds, pooled, _ = pipeline.encode_prompt(
            prompt, None, device=torch.device("cpu"), max_sequence_length=T5_TOKENS
        )
        return {PROMPT: embeds.float(), POOLED: pooled.float()}


def packed(z: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h w / 4, 4 C): a token for every 2 x 2 cells."""
    return nn.functional.pixel_unshuffle(z, PACK).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo `packed`."""
    cells = tokens.transpose(1, 2).unflatten(2, (height // PACK, width // PACK))
    return nn.functional.pixel_shuffle(cells, PACK)


def positions(rows: int, columns: int, like: Tensor) -> Tensor:
    """(0, row, column) of every token, (rows columns, 3)."""
    row = torch.arange(rows, device=like.device, dtype=like.dtype)[:, None].expand(rows, columns)
    column = torch.arange(columns, device=like.device, dtype=like.dtype).expand(rows, columns)
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)
