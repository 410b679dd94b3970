"""`tudsr train decoder`: a light decoder, distilled from the base's own. Not in the paper.

The latents are those of the training pictures, and now and then of what degradation has made of them: between
the two lies what a backbone gives. What is to be learned is the full decoder's picture, not the photograph.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tudsr_train.bases.light_decoder import (
    DECODER_RECORD_FILE,
    DecoderRecord,
    LightDecoder,
    light_decoder,
    save_light_decoder,
)
from tudsr_train.config import DecoderConfig
from tudsr_train.data.pairs import PairDataset
from tudsr_train.discriminators.base import Discriminator
from tudsr_train.gan import Adversaries, PictureAndLatent
from tudsr_train.generator import Generator
from tudsr_train.losses.adversarial import AdversarialLoss
from tudsr_train.run.loop import Loss
from tudsr_train.run.precision import autocast, autoencoder_cast
from tudsr_train.training import Training


class _NoBackbone(nn.Module):
    """In the place of a UNet that is not needed: its configuration alone, none of its memory."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def enable_gradient_checkpointing(self) -> None:
        """There is nothing to compute again."""


class Decoded(PairDataset):
    """(x_H, D(E(x_H))) of pairs (x_L, x_H): a picture, and what the light decoder should make of it."""

    def __init__(self, pairs: PairDataset, gan: Adversaries) -> None:
        self.pairs, self.gan = pairs, gan

    def __len__(self) -> int:
        return len(self.pairs)  # type: ignore[arg-type]

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        x_H = self.pairs[number][1]
        _, decoded = encoded_and_decoded(self.gan, x_H[None].to(self.gan.generator.prompt_embeds.device))
        return x_H, decoded[0].cpu()


@torch.no_grad()
def encoded_and_decoded(gan: Adversaries, x: Tensor, sample: bool = False) -> tuple[Tensor, Tensor]:
    """z = E(x) s, the mode or a sample, and D(z / s), clamped, of pictures (B, 3, R, R) in [-1, 1]."""
    G = gan.generator
    with autoencoder_cast(gan.optimization, x.device):
        z = G.encode(x, sample)
        return z.to(x.dtype), G.decode(z).clamp(-1, 1).to(x.dtype)


def distillation(gan: Adversaries, light: LightDecoder, x: Tensor) -> Loss:
    """L_G of Eq. (8) without an adversary, of D'(z) against D(z / s), where z is the latent of x."""
    z, full = encoded_and_decoded(gan, x, gan.posterior == "sample")
    with autocast(gan.optimization, x.device):
        # not clamped, or a value beyond the range would get no gradient that brings it back
        x_hat = light(z)
    return gan.L_G(PictureAndLatent(x_hat.to(x.dtype), z), full, [])


class LightDecoding(Training[DecoderConfig]):
    """A run that distils a light decoder."""

    result_file = DECODER_RECORD_FILE
    light: LightDecoder

    def prepare(self) -> tuple[Generator, dict[str, nn.Parameter], dict[str, str]]:
        config = self.config
        G = Generator.load(config.base)
        G.unet = _NoBackbone(G.unet.config)
        torch.manual_seed(config.seed)
        self.light = light_decoder(G, config.model.size, config.model.width).to(self.device)
        if config.optimization.compile:
            self.light.compile(dynamic=False)
        if config.optimization.gradient_checkpointing:
            self.light.enable_gradient_checkpointing()
        return G, dict(self.light.named_parameters()), {"base": G.base_sha256}

    def opponent(self, G: Generator) -> tuple[Discriminator | None, AdversarialLoss, str]:
        D, adversarial, _ = super().opponent(G)
        return D, adversarial, self.config.posterior

    def validation_pairs(self) -> PairDataset:
        return Decoded(super().validation_pairs(), self.gan)

    def algorithm(self, number: int, x_L: Tensor, x_H: Tensor) -> Iterator[Loss]:
        """Yield the loss of one batch: of degraded pictures by the draw of its number, else of x_H."""
        degraded = np.random.default_rng([self.config.seed, number, 0xD]).random() < self.config.degraded_prob
        yield distillation(self.gan, self.light, x_L if degraded else x_H)

    def columns(self, x_L: Tensor) -> dict[str, Tensor]:
        return {"light": self.light(encoded_and_decoded(self.gan, x_L)[0]).clamp(-1, 1)}

    def write(self, folder: Path) -> None:
        """Write the light decoder with its record."""
        G = self.gan.generator
        save_light_decoder(self.light, folder, DecoderRecord(G.base_sha256, G.base_id))


def train_decoder(config: DecoderConfig, out: Path, resume: str) -> None:
    """Distil a light decoder and write it to `out`; the run's state lives in `out` + ".run"."""
    LightDecoding(config, out).run(resume)
