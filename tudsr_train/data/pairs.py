"""Training pairs by number: a (seed, number) is the same pair in every process, after every restart."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import multiprocessing
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.errors import TrainingError
from tudsr_train.data.dead_leaves import SyntheticImages
from tudsr_train.data.degradation_nano import blur, require_possible
from tudsr_train.data.recipes import Recipe, low_quality


@dataclass(frozen=True)
class Synthetic:
    """The pool of synthetic pictures that crops are cut from."""

    count: int = 1500
    size: int = 512
    seed: int = 0
    cache: str = "~/.cache/tudsr/synthetic"
    """Folder where a drawn pool is kept for the next run."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 1 or self.seed < 0:
            raise TrainingError(
                f"data: no pictures can be drawn with count {self.count}, size {self.size}, seed {self.seed}"
            )


def synthetic_pool(config: Synthetic, workers: int | None = None) -> NDArray[np.uint8]:
    """Draw the pool, or map it from the cache; uint8 (count, size, size, 3), read-only."""
    parameters = {k: v for k, v in asdict(config).items() if k != "cache"}
    source = hashlib.sha256(Path(__file__).with_name("dead_leaves.py").read_bytes()).hexdigest()
    key = hashlib.sha256(json.dumps([parameters, source]).encode()).hexdigest()[:16]
    path = Path(config.cache).expanduser() / f"pool-{key}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        pool = np.empty((config.count, config.size, config.size, 3), np.uint8)
        chunks = np.array_split(np.arange(config.count), max(1, config.count // 16))
        draw = functools.partial(_draw, config.size, config.seed)
        # spawned, not forked: the parent may already run torch's threads
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers or os.cpu_count(), context) as executor:
            for chunk, pictures in zip(chunks, executor.map(draw, chunks), strict=True):
                pool[chunk] = pictures
        with atomic_write(path) as file:
            np.save(file, pool)
    return np.load(path, mmap_mode="r")


@functools.lru_cache(maxsize=1)
def _images(size: int, seed: int) -> SyntheticImages:
    return SyntheticImages(size, seed)


def _draw(size: int, seed: int, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    images = _images(size, seed)
    return np.stack([(images[int(i)] * 255 + 0.5).astype(np.uint8) for i in numbers])


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


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """(x_L, x_H) by number, float32 (3, R, R) and (3, crop, crop) in [-1, 1]; never exhausted."""

    def __init__(
        self,
        pool: NDArray[np.uint8],
        task: Task,
        softness: Softness,
        degradation: Recipe,
        seed: int,
        length: int,
    ) -> None:
        if pool.shape[1] < task.crop:
            raise TrainingError(
                f"data.size: pictures of {pool.shape[1]} px have no crop of {task.crop} px",
                hint="a larger data.size, or a smaller R",
            )
        self.pool, self.task, self.softness, self.degradation = pool, task, softness, degradation
        self.seed, self.length = seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, number])
        x_H = _random_crop(self.pool, self.task.crop, rng)
        sigma = rng.uniform(*self.softness.sigma) if rng.random() < self.softness.prob else 0.0
        scale = int(rng.choice(self.task.reductions))
        if sigma:
            sigma *= min(1, scale / self.softness.full_at)
            x_H = blur(x_H, np.eye(2) * sigma**2).clamp(0, 1)
        x_L = low_quality(x_H, scale, self.task.enlarge_back_to, self.degradation, rng)
        return x_L * 2 - 1, x_H * 2 - 1


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
