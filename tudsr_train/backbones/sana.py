"""`SanaTransformer2DModel`: Sana (Xie et al. 2024), linear attention over cells of 32 x 32 px."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from tudsr_train.backbones.backbone import PROMPT, Conditions, Transformer, expanded
from tudsr_train.bases.encoders import large_encoder, large_tokenizer, require_room

if TYPE_CHECKING:
    from diffusers import ModelMixin

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.conv_inverted", "ff.conv_point")
GEMMA_TOKENS = 300
"""How many tokens a prompt may have, as in diffusers' pipeline."""


class Sana(Transformer):
    """The picture attends to itself, linearly, and to the prompt, which stays as it is."""

    name = "SanaTransformer2DModel"
    lora_targets: ClassVar = {"standard": ATTENTION, "long": (*ATTENTION, *FEED_FORWARD)}

    def widths(self, network: ModelMixin) -> dict[str, int]:
        return {PROMPT: network.config.caption_channels}

    def refuse(self, network: ModelMixin) -> None:
        if network.config.get("guidance_embeds"):
            raise ValueError(
                "its transformer takes a guidance (guidance_embeds), as SANA-Sprint does, whose steps are no "
                "straight flow"
            )

    def predict(self, network: ModelMixin, z: Tensor, t: Tensor, c: Conditions) -> Tensor:
        prediction: Tensor = network(
            z, expanded(c[PROMPT], z), t * network.config.timestep_scale, return_dict=False
        )[0]
        return prediction

    def encode(self, folder: Path, network: ModelMixin, prompt: str) -> Conditions:
        """Without padding: the network would mask it, so that without a mask the same comes out."""
        from diffusers import SanaPipeline

        pipeline = SanaPipeline(
            tokenizer=large_tokenizer(folder, ""),
            text_encoder=large_encoder(folder, ""),
            vae=None,
            transformer=network,
            scheduler=None,
        )
        require_room(pipeline.tokenizer, prompt, GEMMA_TOKENS)
        embeds, mask, _, _ = pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            device=torch.device("cpu"),
            max_sequence_length=GEMMA_TOKENS,
        )
        return {PROMPT: embeds[:, mask[0].bool()].float()}
