"""The levels that a file holds to the planes that the model sees, and back, one band of rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]
TileFunction: TypeAlias = Callable[[FloatArray], FloatArray]
"""One tile: float32 (1, 3, T, T) in [-1, 1] to (1, 3, T, T); it need not clamp."""
Levels: TypeAlias = NDArray[np.uint8 | np.uint16 | np.float32]
"""(h, w) or (h, w, 3): uint8 or uint16, white at the top of the range, or float32 in [0, 1]."""


WRAPS = {"none": (False, False), "x": (True, False), "xy": (True, True)}
"""Whether the left and right edge of a picture meet, and whether the upper and lower one do, by name."""


class PlanarView:
    """`levels` as float32 planes (3, h, w) in [-1, 1]; only the rows that are asked for are ever converted.

    `view[:, begin:end]` gives (3, rows, w), an array of its own; grey comes three times. Safe to share
    between threads. `margin`: px (left and right, above and below) of the other side that are added around.
    """

    def __init__(self, levels: Levels, margin: tuple[int, int] = (0, 0)) -> None:
        self._levels = levels
        self._step = np.float32(2 / white(levels.dtype))
        self._margin = margin
        height, width = levels.shape[:2]
        self.shape = (3, height + 2 * margin[1], width + 2 * margin[0])

    def __getitem__(self, key: tuple[slice, slice]) -> FloatArray:
        band = self._levels[key[1]] if self._margin == (0, 0) else self._extended(key[1])
        planes = band[None].repeat(3, axis=0) if band.ndim == 2 else band.transpose(2, 0, 1)
        x: FloatArray = np.array(planes, np.float32, order="C")
        x *= self._step
        x -= 1
        return x

    def _extended(self, rows: slice) -> Levels:
        across, down = self._margin
        height, width = self._levels.shape[:2]
        lines = (np.arange(*rows.indices(self.shape[1])) - down) % height
        extended: Levels = self._levels[lines][:, (np.arange(self.shape[2]) - across) % width]
        return extended


Planes: TypeAlias = FloatArray | PlanarView
"""A picture (3, h, w) in [-1, 1] of which bands of rows are taken by slices."""


def noise_tile(edge: int) -> FloatArray:
    """Uniform noise (1, 3, edge, edge) in [-1, 1], always the same: to time and compare engines with."""
    return np.random.default_rng(0).uniform(-1, 1, (1, 3, edge, edge)).astype(np.float32)


def white(dtype: np.dtype[np.generic]) -> int:
    """The value that stands for full intensity: 255, 65535, or 1 for floats."""
    return {"uint8": 255, "uint16": 65535}.get(dtype.name, 1)


def to_levels(values: FloatArray, dtype: np.dtype[np.generic]) -> Levels:
    """Values in [0, 1] (others are clipped) as levels of `dtype`, each rounded to the nearest."""
    top = white(dtype)
    if top == 1:
        return np.clip(values, 0, 1)
    levels: Levels = np.clip(values * np.float32(top) + np.float32(0.5), 0, top).astype(dtype)
    return levels
