"""Degradations by name, and mixtures of them: one door for whatever makes an LQ picture of an HQ picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tudsr_runtime.errors import TrainingError
from tudsr_train.data import degradation_nano as degradation
from tudsr_train.data import degradation_real_esrgan as real_esrgan
from tudsr_train.data.degradation_nano import Degradation
from tudsr_train.data.degradation_real_esrgan import SEESR_MILD, RealESRGAN

REDUCTIONS = {
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Clean:
    """A picture that was reduced as programs do it well, and nothing else: no blur, noise or JPEG."""

    preset: str = "clean"
    """The recipe's name."""
    kernels: tuple[str, ...] = ("area", "bicubic", "lanczos")
    """Kernels of the antialiased reduction, drawn evenly."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.kernels if name not in REDUCTIONS]
        if unknown or not self.kernels:
            raise TrainingError(
                f"degradation: kernels is {list(self.kernels)}; {', '.join(REDUCTIONS)} are known"
            )

    def degrade(self, x_H: Tensor, scale: int, rng: np.random.Generator) -> Tensor:
        """Reduce (3, H, W) in [0, 1] to (3, H / scale, W / scale), on 8-bit levels."""
        kernel = REDUCTIONS[str(rng.choice(self.kernels))]
        pixels = (x_H.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).numpy()
        size = (x_H.shape[-1] // scale, x_H.shape[-2] // scale)
        reduced = np.array(Image.fromarray(pixels).resize(size, kernel))
        return torch.from_numpy(reduced).movedim(-1, 0).float() / 255


CAMERA = Degradation(
    preset="camera",
    blur_sigma=(0.7, 2.2),
    sharpen_amount=(0.0, 1.5),
    sharpen_prob=0.5,
    noise_sigma=(0.0, 0.015),
    noise_prob=0.6,
    jpeg_quality=(75, 98),
    jpeg_prob=0.4,
)
"""Detail as far as a lens resolves, then sharpened in the camera: what a photograph looks like at 100 %,
such as those of RealSR. Hardly any noise."""

PlainRecipe = Degradation | RealESRGAN | Clean


@dataclass(frozen=True)
class MixedRecipe:
    """One of several recipes for every picture, drawn by weight."""

    parts: tuple[PlainRecipe, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        require_shares(self.weights, "degradation")

    def draw(self, rng: np.random.Generator) -> PlainRecipe:
        """The recipe of the next picture."""
        return self.parts[draw_share(self.weights, rng)]


Recipe = PlainRecipe | MixedRecipe
PRESETS: dict[str, PlainRecipe] = {
    "realesrgan": RealESRGAN(),
    "seesr_mild": SEESR_MILD,
    "nano": Degradation(),
    "camera": CAMERA,
    "clean": Clean(),
}
"""Degradations by name; a configuration changes single values of one."""


def require_shares(weights: tuple[float, ...], where: str) -> None:
    """TrainingError unless there are weights, none is below 0, and their sum is above."""
    if not weights or not all(0 <= weight < float("inf") for weight in weights) or not sum(weights):
        raise TrainingError(f"{where}: weights must be at least 0, and one above 0, not {list(weights)}")


def draw_share(weights: tuple[float, ...], rng: np.random.Generator) -> int:
    """An index, drawn by weight."""
    shares = np.asarray(weights, np.float64)
    return int(rng.choice(len(shares), p=shares / shares.sum()))


def low_quality(x_H: Tensor, scale: int, side: int, recipe: Recipe, rng: np.random.Generator) -> Tensor:
    """Reduce (3, H, W) in [0, 1] `scale` times by a recipe, enlarge it to (3, side, side): the paper's x_L.

    Every draw comes from `rng`. Not on 8-bit levels after the enlargement, but for Real-ESRGAN's own.
    """
    if isinstance(recipe, MixedRecipe):
        recipe = recipe.draw(rng)
    if isinstance(recipe, RealESRGAN):
        return real_esrgan.low_quality(x_H, scale, side, recipe, rng)
    if isinstance(recipe, Clean):
        return enlarged(recipe.degrade(x_H, scale, rng), side)
    return enlarged(degradation.degrade(x_H, scale, recipe, rng), side)


def enlarged(low: Tensor, side: int) -> Tensor:
    """(3, h, w) to (3, side, side) as the runtime enlarges its canvas."""
    return F.interpolate(low[None], size=(side, side), mode="bilinear", align_corners=False)[0]
