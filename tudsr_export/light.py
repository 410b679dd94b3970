"""The light decoder of a bundle: a part of its own, and how near its pictures must be to the full one's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tudsr_export.gates import LIGHT, LIGHT_DISTS, Measurement, Report
from tudsr_export.part import Part
from tudsr_runtime.errors import BundleError, TrainingError
from tudsr_train.bases.light_decoder import load_light_decoder
from tudsr_train.generator import Generator
from tudsr_train.losses.dists import DISTS, DistsConfig
from tudsr_train.losses.dists_name import dists_name

LIGHT_DECODER = "vae_decoder_light"


class Light:
    """What the stages make of the first tile with it, one after the other, and the gates.

    Raises BundleError: there is no light decoder of this base in `folder`, or no VGG16 of that name.
    """

    def __init__(
        self, folder: Path, base: Generator, precision: str, vgg16: str | None, tile: Tensor
    ) -> None:
        self.part = Part(LIGHT_DECODER, load_light_decoder(folder, base), ("z_H", "image"), precision)
        self.distance = _distance(vgg16) if vgg16 else None
        self.outputs: list[Tensor] = []
        self._tile = tile

    def decode(self, z_H: list[Tensor]) -> list[Tensor]:
        """Its pictures of some latents, clamped."""
        return [self.part.module(z).clamp(-1, 1) for z in z_H]

    def through(self, latent: Callable[[Tensor], Tensor]) -> None:
        """Send the tile through the next stage; `latent` maps a tile (1, 3, T, T) to its z_H."""
        before = self.outputs[-1] if self.outputs else self._tile
        self.outputs += self.decode([latent(before)])

    def compare(self, z_H: list[Tensor], full: list[Tensor], stage: str, report: Report) -> list[Tensor]:
        """The gates light_vs_full and light_vs_full_dists, of the full decoder's clamped pictures; its own.

        Raises NotFiniteError where one fails.
        """
        light = self.decode(z_H)
        report.psnr(LIGHT, stage, torch.cat(light), torch.cat(full), span=2)
        if self.distance is None:
            report.notes[LIGHT_DISTS.name] = "not run: --vgg16 names no network"
        else:
            name, dists = self.distance
            both = (((torch.cat(side) + 1) / 2) for side in (light, full))
            report.add(Measurement(LIGHT_DISTS, f"{stage}, {name}", float(dists(*both).mean())))
        self.part.calibrate(z_H, [self.part.module(z) for z in z_H], report, f"{LIGHT_DECODER}, {stage}")
        return light


def _distance(vgg16: str) -> tuple[str, DISTS]:
    """DISTS by some VGG16, and its name."""
    try:
        name = dists_name(vgg16)
        return name, DISTS.load(DistsConfig(vgg16, averaged=name != "DISTS"))
    except TrainingError as error:
        hint = (error.hint or "").partition(", or set `dists.weights`")[0].replace("`dists.vgg16`", "--vgg16")
        raise BundleError(str(error), hint=hint or None) from error
