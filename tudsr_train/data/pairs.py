"""Training pairs by number: a (seed, number) is the same pair in every process, after every restart."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tudsr_runtime.errors import TrainingError
from tudsr_train.data.degradation_nano import blur, require_possible
from tudsr_train.data.picture_files import DataError, PictureSource, Pixels, Sample
from tudsr_train.data.recipes import Recipe, draw_share, enlarged, low_quality

PairDataset = Dataset[tuple[Tensor, Tensor]]
"""(x_L, x_H) by number."""


@dataclass(frozen=True)
class Softness:
    """Blur of the HQ crop itself. Photographs are rarely sharp to the pixel; a restorer that only ever saw
    targets that are sharpens too much."""

    prob: float = 0.6
    """Share of crops that are softened."""
    sigma: tuple[float, float] = (0.0, 2.2)
    """Standard deviation of the Gaussian, HQ pixels."""
    full_at: int = 1
    """Reduction from which on `sigma` holds; below it, in proportion: what a camera blurs over four pixels is
    two wide in a picture half the size, and a stage that enlarges by 2 works on pictures of that size."""

    def __post_init__(self) -> None:
        require_possible(self, "softness: ")
        if self.full_at < 1:
            raise TrainingError(f"softness: full_at must be at least 1, not {self.full_at}")


@dataclass(frozen=True)
class Task:
    """How one training pair is made from an HQ crop."""

    crop: int = 192
    """Side of the HQ crop, pixels: R in stage 1, N R in stage 2."""
    reductions: tuple[int, ...] = (2, 4)
    """The crop is reduced by one of these, drawn evenly."""
    enlarge_back_to: int = 192
    """Side of x_L: the LQ picture enlarged bilinearly to R."""


def degraded_pair(
    x_H: Tensor, task: Task, softness: Softness | None, recipe: Recipe, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """(x_L, x_H) of a crop (3, crop, crop) in [0, 1], which is softened first where there is a `softness`."""
    sigma = rng.uniform(*softness.sigma) if softness and rng.random() < softness.prob else 0.0
    scale = int(rng.choice(task.reductions))
    if softness and sigma:
        sigma *= min(1, scale / softness.full_at)
        x_H = blur(x_H, np.eye(2) * sigma**2).clamp(0, 1)
    return low_quality(x_H, scale, task.enlarge_back_to, recipe, rng), x_H


class Pairs(PairDataset):
    """(x_L, x_H) by number, float32 (3, R, R) and (3, crop, crop) in [-1, 1]; never exhausted.

    Args:
        pictures: a pool (count, size, size, 3), whose crops are also turned and varied in contrast, every
            draw seeded by (seed, number); or a source, every draw seeded by (seed, epoch, index).
        softness: None for crops that stay as sharp as they are.
    """

    def __init__(
        self,
        pictures: NDArray[np.uint8] | PictureSource,
        task: Task,
        softness: Softness | None,
        recipe: Recipe,
        seed: int,
        length: int,
    ) -> None:
        if isinstance(pictures, np.ndarray):
            if pictures.shape[1] < task.crop:
                raise TrainingError(
                    f"data.size: pictures of {pictures.shape[1]} px have no crop of {task.crop} px",
                    hint="a larger data.size, or a smaller R",
                )
            self._crop = functools.partial(_crop_of_pool, pictures, seed)
        else:
            self._crop = functools.partial(_crop_of_source, pictures, seed)
        self.task, self.softness, self.recipe, self.length = task, softness, recipe, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        with _single_thread():
            x_H, low, rng = self._crop(self.task.crop, number)
            if low is None:
                x_L, x_H = degraded_pair(x_H, self.task, self.softness, self.recipe, rng)
            else:
                x_L = enlarged(low, self.task.enlarge_back_to)
            return x_L * 2 - 1, x_H * 2 - 1


class MixedPairs(PairDataset):
    """Pairs by number, each of the source that (seed, number) draws."""

    def __init__(self, parts: list[Pairs], weights: tuple[float, ...], seed: int, length: int) -> None:
        self.parts, self.weights, self.seed, self.length = parts, weights, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        chosen = draw_share(self.weights, np.random.default_rng([self.seed, number, 0x3A]))
        return self.parts[chosen][number]


Crop = tuple[Tensor, Tensor | None, np.random.Generator]
"""(3, side, side) in [0, 1], the same part of the LQ picture where the data has one, and what draws go on
from."""


def _crop_of_pool(pool: NDArray[np.uint8], seed: int, side: int, number: int) -> Crop:
    rng = np.random.default_rng([seed, number])
    return _random_crop(pool, side, rng), None, rng


def _crop_of_source(source: PictureSource, seed: int, side: int, number: int) -> Crop:
    sample = source[number]
    rng = np.random.default_rng([seed, sample.epoch, sample.index])
    high, low = _crop(sample, side, rng)
    return _as_tensor(high), None if low is None else _as_tensor(low), rng


FAINT_SHARE = 0.25
"""Share of crops of little contrast."""


def _random_crop(pool: NDArray[np.uint8], side: int, rng: np.random.Generator) -> Tensor:
    """A crop (3, side, side) in [0, 1], flipped and turned, of drawn contrast, brightness, channel order."""
    picture = pool[rng.integers(len(pool))]
    top, left = rng.integers(0, picture.shape[0] - side + 1, 2)
    crop = picture[top : top + side, left : left + side][:, :, rng.permutation(3)]
    crop = np.rot90(crop, int(rng.integers(4)))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    x = torch.from_numpy(crop.astype(np.float32) / 255).permute(2, 0, 1)
    contrast, level = rng.uniform(0.35, 1), rng.random()
    if rng.random() < FAINT_SHARE:
        # skies, walls and night: little to see, often at an end of the range, up to the border
        contrast, level = rng.uniform(0, 0.3), rng.choice([0.0, level, 1.0])
    return (x * contrast + level * (1 - contrast)).contiguous()


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    """torch's resizing rounds another way with another number of threads; workers always have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _crop(sample: Sample, side: int, rng: np.random.Generator) -> tuple[Pixels, Pixels | None]:
    """A crop of `side` HQ pixels, flipped half the time, and the same part of the LQ picture."""
    factor = 1 if sample.low is None else sample.high.shape[0] // sample.low.shape[0]
    height, width = (length // factor for length in sample.high.shape[:2])
    if min(height, width) * factor < side or side % factor:
        raise DataError(f"a picture of {width * factor} x {height * factor} px has no crop of {side} px")
    top, left = (int(rng.integers(length - side // factor + 1)) for length in (height, width))
    flip = rng.random() < 0.5
    high = _cut(sample.high, top * factor, left * factor, side, flip)
    return high, None if sample.low is None else _cut(sample.low, top, left, side // factor, flip)


def _cut(pixels: Pixels, top: int, left: int, side: int, flip: bool) -> Pixels:
    crop = pixels[top : top + side, left : left + side]
    return crop[:, ::-1] if flip else crop


def _as_tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1).contiguous()
