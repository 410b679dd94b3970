"""Resizing as MATLAB's imresize does it, which published figures of super-resolution rest on.

Cubic convolution with a = -0.5 (Keys 1981); where it reduces, the kernel is widened by the factor; beyond
the edge the picture is mirrored. Pillow's bicubic differs at the edges alone, where it drops what lies
outside. `box` takes the exact mean of the area below each pixel, for any factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tudsr_runtime.metrics.pixels import Floats

Kernel = Callable[[Floats], Floats]


def imresize(x: Floats, height: int, width: int, method: str = "cubic") -> Floats:
    """(h, w) or (h, w, c) resized to `height` x `width`; not clamped.

    Args:
        method: cubic or lanczos3, as MATLAB names them, or box (the mean of each pixel's area).
    """
    rows = _resized(x, height, method)
    return np.swapaxes(_resized(np.swapaxes(rows, 0, 1), width, method), 0, 1)


def _resized(x: Floats, length: int, method: str) -> Floats:
    """Along the first axis."""
    if length == len(x):
        return x
    neighbours, weights = _area(len(x), length) if method == "box" else _contributions(len(x), length, method)
    weights = weights.reshape(*weights.shape, *[1] * (x.ndim - 1))
    total = x[neighbours[:, 0]] * weights[:, 0]
    for tap in range(1, neighbours.shape[1]):
        total += x[neighbours[:, tap]] * weights[:, tap]
    return total


def _contributions(length_in: int, length_out: int, method: str) -> tuple[NDArray[np.int64], Floats]:
    """Which pixels each new one is made of, and by which weights: (length_out, taps) both."""
    kernel, width = KERNELS[method]
    scale = length_out / length_in
    shrink = min(scale, 1.0)
    centres = (np.arange(length_out) + 0.5) / scale - 0.5
    taps = math.ceil(width / shrink) + 2
    first = np.floor(centres - width / shrink / 2).astype(np.int64)
    places = first[:, None] + np.arange(taps)
    weights = kernel((centres[:, None] - places) * shrink)
    return _mirrored(places, length_in), weights / weights.sum(1, keepdims=True)


def _area(length_in: int, length_out: int) -> tuple[NDArray[np.int64], Floats]:
    """Each new pixel is the mean of what it covers, parts of pixels included."""
    step = length_in / length_out
    begin = np.arange(length_out) * step
    places = np.floor(begin).astype(np.int64)[:, None] + np.arange(math.ceil(step) + 1)
    covered = np.minimum(places + 1, begin[:, None] + step) - np.maximum(places, begin[:, None])
    weights = covered.clip(0)
    return places.clip(0, length_in - 1), weights / weights.sum(1, keepdims=True)


def _mirrored(places: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Indices beyond the edge, brought back by mirrors on both edges, the edge pixel twice."""
    folded = places % (2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)


def _cubic(x: Floats) -> Floats:
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def _lanczos3(x: Floats) -> Floats:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


KERNELS: dict[str, tuple[Kernel, float]] = {"cubic": (_cubic, 4.0), "lanczos3": (_lanczos3, 6.0)}
