"""Real-ESRGAN's degradation (Wang et al. 2021, section 3), which the paper trains on: two rounds of blur,
resize, noise and JPEG, a sinc filter near the end, and the way back to the size that the generator takes.

First every number is drawn (`draw`), then the picture is degraded by those numbers (`degrade`), so that the
order of the steps reads in one place and can be checked against a reference. Two things differ from the
published programs: the JPEG encoder is a real one (Pillow, whole qualities, 4:2:0) where they approximate
it, and kernels are not padded to one size, which changes nothing but the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tudsr_runtime.errors import TrainingError
from tudsr_train.data import blur_kernels as kernels
from tudsr_train.data.blur_kernels import Kernel
from tudsr_train.data.degradation_nano import jpeg, require_possible

Range = tuple[float, float]
MODES = ("area", "bilinear", "bicubic")
LUMA = (0.2989, 0.587, 0.114)

AROUND_1 = ("resize_range", "resize_range2", "betag_range", "betap_range")
"""Ranges that are drawn from below 1 and from above."""
LIMITS = {
    **dict.fromkeys(AROUND_1, (0.01, 16)),
    **dict.fromkeys(("blur_sigma", "blur_sigma2"), (0.01, 100)),
    **dict.fromkeys(("kernel_sizes", "kernel_sizes_x8"), (1, 255)),
}
"""A blur of no width, a picture of no size and a kernel of no taps cannot be drawn."""


@dataclass(frozen=True)
class RealESRGAN:
    """Ranges that every LQ picture is drawn from. Names and defaults are those of Real-ESRGAN x4plus; a
    final 2 is for the second round.

    Its weights of up, down and keep, and of the six kinds of kernel, need not sum to 1.
    """

    preset: str = "realesrgan"
    """realesrgan, or seesr_mild: what these values were before any was changed."""
    kernel_sizes: tuple[int, int] = (7, 21)
    """Smallest and largest kernel, taps per side; odd sizes in between are drawn evenly."""
    kernel_sizes_x8: tuple[int, int] = (11, 41)
    """The same where a crop is reduced 8 times or more, as in stage 2 (OMGSR's recipe for 1024 px)."""
    kernel_prob: tuple[float, float, float, float, float, float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """Isotropic and anisotropic Gaussian, generalized Gaussian (iso, aniso), plateau (iso, aniso)."""
    sinc_prob: float = 0.1
    """Share of blurs that are a sinc filter instead."""
    blur_sigma: Range = (0.2, 3.0)
    """Standard deviations, pixels."""
    betag_range: Range = (0.5, 4.0)
    """Exponent of the generalized Gaussian; below and above 1 equally often."""
    betap_range: Range = (1.0, 2.0)
    """Exponent of the plateau; below and above 1 equally often."""
    resize_prob: tuple[float, float, float] = (0.2, 0.7, 0.1)
    """Up, down, keep."""
    resize_range: Range = (0.15, 1.5)
    gaussian_noise_prob: float = 0.5
    """Share of Gaussian noise; the rest is Poisson's (shot noise)."""
    noise_range: Range = (1.0, 30.0)
    """Standard deviation of Gaussian noise, in levels of 255."""
    poisson_scale_range: Range = (0.05, 3.0)
    gray_noise_prob: float = 0.4
    """Share of noise that is the same in all channels."""
    jpeg_range: tuple[int, int] = (30, 95)
    second_blur_prob: float = 0.8
    sinc_prob2: float = 0.1
    blur_sigma2: Range = (0.2, 1.5)
    resize_prob2: tuple[float, float, float] = (0.3, 0.4, 0.3)
    resize_range2: Range = (0.3, 1.2)
    gaussian_noise_prob2: float = 0.5
    noise_range2: Range = (1.0, 25.0)
    poisson_scale_range2: Range = (0.05, 2.5)
    gray_noise_prob2: float = 0.4
    jpeg_range2: tuple[int, int] = (30, 95)
    final_sinc_prob: float = 0.8
    enlarge: str = "any"
    """How the LQ picture gets to the size that the generator takes: by any of area, bilinear and bicubic, or
    always by the one that is named. `bilinear` is what the runtime does."""

    def __post_init__(self) -> None:
        require_possible(self, "degradation: ")
        for name, (least, most) in LIMITS.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise TrainingError(
                    f"degradation: {name} must lie between {least:g} and {most:g}, not {[low, high]}"
                )
        for name in AROUND_1:
            low, high = getattr(self, name)
            if not low <= 1 <= high:
                raise TrainingError(f"degradation: {name} must have 1 in it, not {[low, high]}")
        if self.enlarge not in ("any", *MODES):
            raise TrainingError(
                f"degradation: enlarge is {self.enlarge!r}; any, {', '.join(MODES)} are known"
            )


SEESR_MILD = RealESRGAN(
    preset="seesr_mild",
    resize_range=(0.3, 1.5),
    noise_range=(1.0, 15.0),
    poisson_scale_range=(0.05, 2.0),
    jpeg_range=(60, 95),
    second_blur_prob=0.5,
    resize_range2=(0.6, 1.2),
    noise_range2=(1.0, 12.0),
    poisson_scale_range2=(0.05, 1.0),
    jpeg_range2=(60, 100),
)
"""The milder set that SeeSR, PiSA-SR and OMGSR train with."""


@dataclass(frozen=True)
class Noise:
    """One drawing of noise. `strength` is a standard deviation in levels, or Poisson's scale."""

    poisson: bool
    strength: float
    gray: bool
    seed: int


@dataclass(frozen=True)
class Draws:
    """Every number of one degradation, in the order of its steps."""

    kernel: Kernel
    resize: float
    mode: str
    noise: Noise
    quality: int
    kernel2: Kernel | None
    """None where the second round does not blur."""
    resize2: float
    """Relative to the size of the LQ picture."""
    mode2: str
    noise2: Noise
    jpeg_last: bool
    """The last resize and the sinc filter come before the second JPEG, or after it."""
    mode_final: str
    sinc: Kernel | None
    quality2: int
    mode_back: str
    """Mode of the enlargement to the generator's input."""


def draw(recipe: RealESRGAN, scale: int, rng: np.random.Generator) -> Draws:
    """Draw all numbers for one picture that is reduced `scale` times."""
    r, sizes = recipe, recipe.kernel_sizes_x8 if scale >= 8 else recipe.kernel_sizes
    kernel = _draw_kernel(r, sizes, r.sinc_prob, r.blur_sigma, rng)
    kernel2 = _draw_kernel(r, sizes, r.sinc_prob2, r.blur_sigma2, rng)
    final_sinc = kernels.sinc(_draw_size(sizes, rng), rng.uniform(math.pi / 3, math.pi))
    return Draws(
        kernel,
        _draw_resize(r.resize_prob, r.resize_range, rng),
        str(rng.choice(MODES)),
        _draw_noise(r.gaussian_noise_prob, r.noise_range, r.poisson_scale_range, r.gray_noise_prob, rng),
        int(rng.integers(r.jpeg_range[0], r.jpeg_range[1], endpoint=True)),
        kernel2 if rng.random() < r.second_blur_prob else None,
        _draw_resize(r.resize_prob2, r.resize_range2, rng),
        str(rng.choice(MODES)),
        _draw_noise(r.gaussian_noise_prob2, r.noise_range2, r.poisson_scale_range2, r.gray_noise_prob2, rng),
        bool(rng.random() < 0.5),
        str(rng.choice(MODES)),
        final_sinc if rng.random() < r.final_sinc_prob else None,
        int(rng.integers(r.jpeg_range2[0], r.jpeg_range2[1], endpoint=True)),
        str(rng.choice(MODES)),
    )


def degrade(x_H: Tensor, scale: int, draws: Draws) -> Tensor:
    """The LQ picture (3, H // scale, W // scale) of `x_H`, float32 (3, H, W) in [0, 1], by the drawn numbers.

    Not clamped where the sinc filter comes last, as in the published pipeline.
    """
    height, width = x_H.shape[-2:]
    x = filter2d(x_H, draws.kernel)
    x = F.interpolate(x[None], scale_factor=draws.resize, mode=draws.mode)[0]
    x = compress(add_noise(x, draws.noise), draws.quality)

    if draws.kernel2 is not None:
        x = filter2d(x, draws.kernel2)
    x = resize(x, (int(height / scale * draws.resize2), int(width / scale * draws.resize2)), draws.mode2)
    x = add_noise(x, draws.noise2)

    # resize and sinc are one step: with the JPEG in between, lines come out twisted (Real-ESRGAN's authors)
    if not draws.jpeg_last:
        x = compress(x, draws.quality2)
    x = resize(x, (height // scale, width // scale), draws.mode_final)
    if draws.sinc is not None:
        x = filter2d(x, draws.sinc)
    return compress(x, draws.quality2) if draws.jpeg_last else x


def low_quality(x_H: Tensor, scale: int, side: int, recipe: RealESRGAN, rng: np.random.Generator) -> Tensor:
    """Degrade `x_H` and enlarge the result to (3, side, side), in [0, 1] on 8-bit levels: the paper's x_L."""
    draws = draw(recipe, scale, rng)
    mode = draws.mode_back if recipe.enlarge == "any" else recipe.enlarge
    x_L = resize(degrade(x_H, scale, draws), (side, side), mode)
    return (x_L * 255).round().clamp(0, 255) / 255


def filter2d(x: Tensor, kernel: Kernel) -> Tensor:
    """Correlate each channel of (C, H, W) with a kernel, edges reflected.

    By a product of spectra, five times as fast as `conv2d` with a kernel of 21 taps.
    """
    reach = len(kernel) // 2
    height, width = x.shape[-2:]
    # NumPy reflects as often as it takes; torch refuses a margin wider than the picture
    padded = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="reflect"))
    size = padded.shape[-2:]
    transfer = torch.fft.rfft2(torch.from_numpy(kernel.astype(np.float32)), s=size).conj()
    return torch.fft.irfft2(torch.fft.rfft2(padded) * transfer, s=size)[:, :height, :width].contiguous()


def resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """(C, H, W) to (C, *size), without antialiasing, as the published pipeline does it."""
    return F.interpolate(x[None], size=size, mode=mode)[0]


def add_noise(x: Tensor, noise: Noise) -> Tensor:
    """Add noise to (3, H, W) in [0, 1] and clamp."""
    rng = np.random.default_rng(noise.seed)
    if noise.poisson:
        source = (x * torch.tensor(LUMA)[:, None, None]).sum(0, keepdim=True) if noise.gray else x
        return (x + _shot_noise(source, rng) * noise.strength).clamp(0, 1)
    values = rng.standard_normal((1 if noise.gray else 3, *x.shape[1:]), np.float32)
    return (x + torch.from_numpy(values) * (noise.strength / 255)).clamp(0, 1)


def _shot_noise(x: Tensor, rng: np.random.Generator) -> Tensor:
    """What counting photons adds; as many per level of brightness as the picture has levels."""
    levels = (x * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    photons = 2 ** math.ceil(math.log2(np.count_nonzero(np.bincount(levels.ravel(), minlength=256))))
    brightness = levels / 255
    counted = rng.poisson(brightness * photons) / photons
    return torch.from_numpy((counted - brightness).astype(np.float32))


def compress(x: Tensor, quality: int) -> Tensor:
    """(3, H, W) in [0, 1], clamped, through a JPEG file."""
    return jpeg((x.clamp(0, 1) * 255).round().to(torch.uint8), quality).float() / 255


def _draw_size(sizes: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(sizes[0] // 2, sizes[1] // 2, endpoint=True)) * 2 + 1


def _draw_kernel(
    recipe: RealESRGAN, sizes: tuple[int, int], sinc_prob: float, sigma: Range, rng: np.random.Generator
) -> Kernel:
    size = _draw_size(sizes, rng)
    if rng.random() < sinc_prob:
        # a small kernel cannot hold the ringing of a low cutoff; 13 of 21 taps, 25 of 41
        small = size < (13 if sizes[1] <= 21 else 25)
        return kernels.sinc(size, rng.uniform(math.pi / (3 if small else 5), math.pi))
    kind = int(rng.choice(6, p=_shares(recipe.kernel_prob)))
    sigma_x, sigma_y = rng.uniform(*sigma, 2)
    theta = rng.uniform(-math.pi, math.pi)
    isotropic = kind % 2 == 0
    S = kernels.covariance(sigma_x, sigma_x, 0) if isotropic else kernels.covariance(sigma_x, sigma_y, theta)
    if kind < 2:
        return kernels.gaussian(size, S)
    if kind < 4:
        return kernels.generalized_gaussian(size, S, _draw_beta(recipe.betag_range, rng))
    return kernels.plateau(size, S, _draw_beta(recipe.betap_range, rng))


def _draw_beta(beta: Range, rng: np.random.Generator) -> float:
    return rng.uniform(beta[0], 1) if rng.random() < 0.5 else rng.uniform(1, beta[1])


def _draw_resize(prob: tuple[float, float, float], factors: Range, rng: np.random.Generator) -> float:
    kind = rng.choice(3, p=_shares(prob))
    return (rng.uniform(1, factors[1]), rng.uniform(factors[0], 1), 1.0)[kind]


def _draw_noise(
    gaussian_prob: float, sigma: Range, poisson_scale: Range, gray_prob: float, rng: np.random.Generator
) -> Noise:
    poisson = bool(rng.random() >= gaussian_prob)
    strength = rng.uniform(*(poisson_scale if poisson else sigma))
    return Noise(poisson, strength, bool(rng.random() < gray_prob), int(rng.integers(2**62)))


def _shares(weights: tuple[float, ...]) -> NDArray[np.float64]:
    return np.asarray(weights) / sum(weights)
