"""The LQ picture that a camera, a resize and a JPEG encoder would have left of an HQ picture.

One round in Real-ESRGAN's order (Wang et al. 2021, section 3): blur, resize, noise, JPEG. Blur widths are
in units of half the reduction factor, so that the same numbers mean the same blur, seen from the LQ grid,
at every factor.
"""

from __future__ import annotations

import dataclasses
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tudsr_runtime.errors import TrainingError

Range = tuple[float, float]


@dataclass(frozen=True)
class Degradation:
    """Ranges that every LQ picture is drawn from; `nano`'s own, wider than any single camera."""

    preset: str = "nano"
    """The recipe's name; it has this one set of values."""
    blur_sigma: Range = (0.1, 1.4)
    """Standard deviation of the Gaussian blur, in units of scale / 2 HQ pixels."""
    anisotropic_prob: float = 0.3
    """Share of blurs whose two axes are drawn on their own and turned."""
    shift: float = 0.25
    """Largest shift per axis, LQ pixels: programs that reduce pictures disagree on where a pixel is, and two
    shots of one scene are never aligned exactly."""
    shift_prob: float = 0.5
    sharpen_amount: Range = (0.0, 1.0)
    """Strength of an unsharp mask on the LQ picture, as cameras apply it; without it a restorer sharpens what
    is sharpened already."""
    sharpen_prob: float = 0.35
    noise_sigma: Range = (0.0, 0.045)
    """Standard deviation of the noise, 1 = full range."""
    noise_prob: float = 0.85
    gray_noise_prob: float = 0.3
    """Share of noise that is the same in all channels."""
    poisson_prob: float = 0.2
    """Share of noise whose variance follows the brightness (shot noise)."""
    jpeg_quality: tuple[int, int] = (45, 98)
    jpeg_prob: float = 0.7

    def __post_init__(self) -> None:
        require_possible(self, "degradation: ")


def require_possible(recipe: Any, where: str) -> None:
    """TrainingError where a share of a dataclass is none, or a range is not one.

    Fields named `prob` are shares from 0 to 1, or several weights; other pairs are ranges; all at least 0,
    and the quality of a JPEG, which libraries take 0 of for their default, at least 1.
    """
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if isinstance(value, str):
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        share, pair = "prob" in field.name, isinstance(value, tuple)
        quality = "jpeg" in field.name and not share
        most, least = 1 if share and not pair else 100 if quality else math.inf, int(quality)
        shown = list(numbers) if pair else value
        if not all(least <= number <= most and number < math.inf for number in numbers):
            upwards = "at least 0" if most == math.inf else f"from {least} to {most}"
            raise TrainingError(f"{where}{field.name} must be {upwards}, not {shown}")
        if pair and share and not sum(numbers):
            raise TrainingError(f"{where}{field.name} must have a weight above 0, not {shown}")
        if pair and not share and numbers[0] > numbers[-1]:
            raise TrainingError(f"{where}{field.name} goes from low to high, not {shown}")


def degrade(x_H: Tensor, scale: int, degradation: Degradation, rng: np.random.Generator) -> Tensor:
    """Reduce an HQ picture `scale` times as the real world would; every draw comes from `rng`.

    Args:
        x_H: float32 (3, H, W) in [0, 1]; H and W multiples of `scale`.
        scale: whole reduction factor, 1 or more.

    Returns:
        float32 (3, H / scale, W / scale) in [0, 1], on 8-bit levels.
    """
    x = blur(x_H, _blur_covariance(scale, degradation, rng), _shift(scale, degradation, rng))
    x = _reduce(x, scale, rng)
    if rng.random() < degradation.sharpen_prob:
        soft = blur(x, np.eye(2) * rng.uniform(0.5, 1.2) ** 2)
        x = x + rng.uniform(*degradation.sharpen_amount) * (x - soft)
    if rng.random() < degradation.noise_prob:
        x = _add_noise(x, degradation, rng)
    levels = (x.clamp(0, 1) * 255).round().to(torch.uint8)
    if rng.random() < degradation.jpeg_prob:
        levels = jpeg(levels, int(rng.integers(degradation.jpeg_quality[0], degradation.jpeg_quality[1] + 1)))
    return levels.float() / 255


def _blur_covariance(scale: int, degradation: Degradation, rng: np.random.Generator) -> NDArray[np.float64]:
    sigma = rng.uniform(*degradation.blur_sigma, 2) * scale / 2
    if rng.random() >= degradation.anisotropic_prob:
        sigma[1] = sigma[0]
    angle = rng.uniform(0, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray(turn @ np.diag(sigma**2) @ turn.T)


def _shift(scale: int, degradation: Degradation, rng: np.random.Generator) -> NDArray[np.float64]:
    moved = rng.random() < degradation.shift_prob
    return rng.uniform(-1, 1, 2) * degradation.shift * scale * moved


def blur(
    x: Tensor, covariance: NDArray[np.float64], shift: NDArray[np.float64] | tuple[float, float] = (0.0, 0.0)
) -> Tensor:
    """Convolve (C, H, W) with a Gaussian of a 2x2 covariance (pixels squared; axes x, y), edges reflected,
    and move it by `shift` pixels (x, y).

    The convolution is a product of spectra, so its cost does not grow with the width.
    """
    height, width = x.shape[-2:]
    reach = 3 * np.sqrt(covariance.max()) + np.abs(shift).max()
    margin = min(int(np.ceil(reach)), height - 1, width - 1)
    if margin == 0:
        return x
    padded = F.pad(x[None], (margin,) * 4, mode="reflect")[0]
    fy = torch.fft.fftfreq(padded.shape[-2])[:, None]
    fx = torch.fft.rfftfreq(padded.shape[-1])[None]
    quadratic = covariance[0, 0] * fx**2 + 2 * covariance[0, 1] * fx * fy + covariance[1, 1] * fy**2
    phase = -2 * np.pi * (shift[0] * fx + shift[1] * fy)
    transfer = torch.polar(torch.exp(-2 * np.pi**2 * quadratic), phase)
    spectrum = torch.fft.rfft2(padded) * transfer
    blurred = torch.fft.irfft2(spectrum, s=padded.shape[-2:])
    return blurred[:, margin : margin + height, margin : margin + width].contiguous()


def _reduce(x: Tensor, scale: int, rng: np.random.Generator) -> Tensor:
    size = (x.shape[-2] // scale, x.shape[-1] // scale)
    mode = rng.choice(["area", "bilinear", "bicubic"])
    if mode == "area":
        return F.interpolate(x[None], size=size, mode="area")[0]
    # libraries differ on whether a reduction is antialiased, so both kinds are met in the wild
    return F.interpolate(x[None], size=size, mode=str(mode), antialias=bool(rng.random() < 0.6))[0]


def _add_noise(x: Tensor, degradation: Degradation, rng: np.random.Generator) -> Tensor:
    channels = 1 if rng.random() < degradation.gray_noise_prob else x.shape[0]
    noise = torch.from_numpy(rng.standard_normal((channels, *x.shape[1:]), dtype=np.float32))
    sigma = rng.uniform(*degradation.noise_sigma)
    if rng.random() < degradation.poisson_prob:
        return x + noise * sigma * (2 * x.clamp(0, 1)).sqrt()  # the given sigma at mid grey
    return x + noise * sigma


def jpeg(levels: Tensor, quality: int) -> Tensor:
    """uint8 (3, H, W) through a JPEG file of this quality (4:2:0)."""
    file = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
