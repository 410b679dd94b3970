"""`SD3Transformer2DModel`: Stable Diffusion 3 and 3.5 (Esser et al. 2024)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from tudsr_train.backbones.backbone import POOLED, PROMPT, Conditions, Transformer, expanded
from tudsr_train.bases.encoders import (
    clip_encoder,
    clip_tokenizer,
    large_encoder,
    large_tokenizer,
    require_room,
)

if TYPE_CHECKING:
    from diffusers import ModelMixin

ATTENTION = (
    "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
)  # fmt: skip
"""Attention, of picture and text: what diffusers' own LoRA training of these networks adapts."""
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
T5_TOKENS = 256
"""How many of the third encoder's tokens the network gets, as in diffusers' pipeline."""


class SD3(Transformer):
    """Picture and text tokens attend to each other in every block."""

    name = "SD3Transformer2DModel"
    lora_targets: ClassVar = {"standard": ATTENTION, "long": (*ATTENTION, *FEED_FORWARD)}

    def most_cells(self, network: ModelMixin) -> int | None:
        return int(network.config.pos_embed_max_size * network.config.patch_size)

    def widths(self, network: ModelMixin) -> dict[str, int]:
        config = network.config
        return {PROMPT: config.joint_attention_dim, POOLED: config.pooled_projection_dim}

    def predict(self, network: ModelMixin, z: Tensor, t: Tensor, c: Conditions) -> Tensor:
        prediction: Tensor = network(
            hidden_states=z,
            encoder_hidden_states=expanded(c[PROMPT], z),
            pooled_projections=expanded(c[POOLED], z),
            timestep=t,
            return_dict=False,
        )[0]
        return prediction

    def encode(self, folder: Path, network: ModelMixin, prompt: str) -> Conditions:
        """The third encoder, a T5, may be missing: zeros take its place, as in diffusers' pipeline."""
        from diffusers import StableDiffusion3Pipeline

        third = (folder / "text_encoder_3" / "config.json").is_file()
        pipeline = StableDiffusion3Pipeline(
            transformer=network,
            scheduler=None,
            vae=None,
            text_encoder=clip_encoder(folder, "", projected=True),
            tokenizer=clip_tokenizer(folder, ""),
            text_encoder_2=clip_encoder(folder, "_2", projected=True),
            tokenizer_2=clip_tokenizer(folder, "_2"),
            text_encoder_3=large_encoder(folder, "_3") if third else None,
            tokenizer_3=large_tokenizer(folder, "_3") if third else None,
        )
        require_room(pipeline.tokenizer, prompt, pipeline.tokenizer_max_length)
        with torch.no_grad():
            embeds, _, pooled, _ = pipeline.encode_prompt(
                prompt,
                None,
                None,
                device=torch.device("cpu"),
                do_classifier_free_guidance=False,
                max_sequence_length=T5_TOKENS,
            )
        return {PROMPT: embeds.float(), POOLED: pooled.float()}
