"""Is a tile what the model should have made of it? A cheap look at every one."""

from __future__ import annotations

import numpy as np

from tudsr_runtime.planes import FloatArray

GRID = 16
"""Blocks along each side of a tile: 32 px of 512. Their means survive every honest restoration."""
LEAST_CONTRAST = 0.05
"""Standard deviation of the block means, in [-1, 1], from which a tile has contrast that it can lose."""
KEPT_CONTRAST = 0.1
"""Share of that contrast that the result must still have."""
MAX_SHIFT = 0.75
"""Greatest change of a tile's mean, in [-1, 1]."""


def find_fault(x: FloatArray, y: FloatArray, sanity: bool = True) -> str | None:
    """What is wrong with `y`, the model's result for the tile `x`, both (3, T, T); None: nothing.

    NaN and infinity always; with `sanity` also a collapse: black, constant or garbage where the tile was not.
    """
    if not np.isfinite(y).all():
        return "made NaN or infinity"
    if not sanity:
        return None
    before, after = _coarse(x), _coarse(np.clip(y, -1, 1))
    shift = float(abs(after.mean() - before.mean()))
    if shift > MAX_SHIFT:
        return f"changed the mean of the picture by {shift / 2:.0%}"
    contrast, kept = float(before.std()), float(after.std())
    if contrast > LEAST_CONTRAST and kept < KEPT_CONTRAST * contrast:
        return f"kept {kept / contrast:.0%} of the picture's contrast"
    return None


def _coarse(x: FloatArray) -> FloatArray:
    """Means over the blocks of the grid; the rest of a side that does not divide is left out."""
    block = x.shape[1] // GRID
    side = block * GRID
    blocks = x[:, :side, :side].reshape(len(x), GRID, block, GRID, block)
    means: FloatArray = blocks.mean(axis=4).mean(axis=2)
    return means
