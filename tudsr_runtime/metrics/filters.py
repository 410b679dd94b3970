"""Separable filters in float64, on the first two axes of a picture."""

from __future__ import annotations

import numpy as np

from tudsr_runtime.metrics.pixels import Floats


def gaussian_window(side: int, sigma: float) -> Floats:
    """`side` samples of a Gaussian of `sigma` px around the middle, of sum 1."""
    offsets = np.arange(side) - (side - 1) / 2
    window = np.exp(-0.5 * (offsets / sigma) ** 2)
    normalised: Floats = window / window.sum()
    return normalised


def filter_valid(x: Floats, window: Floats) -> Floats:
    """Correlation with `window` along both axes where it lies inside: each shrinks by len(window) - 1."""
    return _along_rows(_along_rows(x, window).T, window).T


def filter_edge(x: Floats, window: Floats) -> Floats:
    """The same with the edge pixel repeated beyond the edge: the size stays."""
    return filter_valid(np.pad(x, len(window) // 2, mode="edge"), window)


def _along_rows(x: Floats, window: Floats) -> Floats:
    """Along the first axis alone."""
    n = len(x) - len(window) + 1
    total: Floats = x[:n] * window[0]
    for offset, weight in enumerate(window[1:], start=1):
        total += x[offset : offset + n] * weight
    return total
