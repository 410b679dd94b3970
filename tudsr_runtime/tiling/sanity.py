"""Is a tile what the model should have made of it? A cheap look at every one.

A restorer may invent what is small; what is large it has to keep. So the means of a tile's blocks, one a
channel, are compared before and after: what is made of them may be shifted, flatter or stronger, within the
bounds below, but has to follow them. Colour correction comes after all tiles and repairs no worse.
"""

from __future__ import annotations

import numpy as np

from tudsr_runtime.planes import FloatArray

GRID = 16
"""Blocks along each side of a tile: 32 px of 512. Their means survive every honest restoration."""
LEAST_BLOCK = 16
"""Px of a block's side at least: below, the mean of noise is no constant, and to denoise is honest."""
LEAST_CONTRAST = 0.05
"""Standard deviation of the block means around those of their channels, in [-1, 1], from which a tile has
contrast that it can lose."""
KEPT_CONTRAST = 0.1
"""Share of that contrast that the result must still have."""
MOST_GAIN = 2.5
"""Times that contrast that the result may have, beside `LEAST_GROWTH`."""
LEAST_GROWTH = 0.1
"""Contrast that even a flat tile may get."""
LEAST_CORRELATION = 0.5
"""Of the block means before and after, where there is contrast: a negative has -1."""
MAX_SHIFT = 0.4
"""Greatest change of a channel's mean, in [-1, 1]: a fifth of the range."""
BEYOND = 8.0
"""What lies further out counts as this, so that sums stay finite; sound decoders stay within 2."""


def find_fault(x: FloatArray, y: FloatArray, sanity: bool = True) -> str | None:
    """What is wrong with `y`, the model's result for the tile `x`, both (3, T, T); None: nothing.

    NaN and infinity always; with `sanity` also what is no restoration: black, constant, garbage, a negative,
    another brightness.
    """
    if not np.isfinite(y).all():
        return "made NaN or infinity"
    if not sanity:
        return None
    before, after = _coarse(x), _coarse(np.clip(y, -BEYOND, BEYOND))
    means, new_means = (blocks.mean(axis=(1, 2), keepdims=True) for blocks in (before, after))
    shift = float(np.abs(new_means - means).max())
    before, after = before - means, after - new_means
    contrast, kept = float(before.std()), float(after.std())
    if kept > MOST_GAIN * contrast + LEAST_GROWTH:
        return f"made contrast of {kept / 2:.0%} of the range out of {contrast / 2:.0%}"
    if contrast > LEAST_CONTRAST and kept < KEPT_CONTRAST * contrast:
        return f"kept {kept / contrast:.0%} of the picture's contrast"
    if shift > MAX_SHIFT:
        return f"changed the mean of the picture by {shift / 2:.0%}"
    if contrast <= LEAST_CONTRAST:
        return None
    correlation = float(np.mean(before * after)) / (contrast * kept)
    if correlation < LEAST_CORRELATION:
        return f"made another picture, whose large parts follow the input's by {correlation:.0%}"
    return None


def _coarse(x: FloatArray) -> FloatArray:
    """Means over the blocks of the grid; the rest of a side that does not divide is left out."""
    block = max(min(LEAST_BLOCK, x.shape[1]), x.shape[1] // GRID)
    grid = x.shape[1] // block
    blocks = x[:, : grid * block, : grid * block].reshape(len(x), grid, block, grid, block)
    means: FloatArray = blocks.mean(axis=4).mean(axis=2)
    return means
