"""Where tiles lie on a canvas and how neighbours are blended, one axis at a time.

Tiles overlap; inside each overlap a raised-cosine ramp leads from one tile to the next. The ramp is narrower
than the overlap, so the pixels at a tile's own edge, where the autoencoder sees a border that is not there,
get weight zero. The weights of neighbours sum to one by construction: no map of weights is kept and nothing
is divided.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tudsr_runtime.errors import quoted
from tudsr_runtime.planes import FloatArray

TILE = 512
"""Edge of a tile in px: the size that every graph is exported for."""
OVERLAP = 128
"""Least overlap of neighbouring tiles in px."""
MAX_RAMP = 112
"""Widest blending ramp in px."""
DEAD_MARGIN = 8
"""Least width in px of the zero-weight strip along an edge that a tile shares with a neighbour."""
MIN_OVERLAP = 2 * DEAD_MARGIN + 1


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis of a canvas.

    `length` is the canvas's own extent in px and `tile` the tile's; `starts` are the first pixels of the
    tiles; `ramp` is the width of the blending ramp, 0 for a single tile. A canvas shorter than a tile is
    padded to it.
    """

    length: int
    tile: int
    starts: tuple[int, ...]
    ramp: int

    def divided(self, factor: int) -> Axis:
        """The same tiles on a canvas `factor` times smaller, to be read alone: there is no ramp."""
        starts = tuple(start // factor for start in self.starts)
        return Axis(self.length // factor, self.tile // factor, starts, 0)

    @property
    def padded(self) -> int:
        """Extent of the canvas after padding, in px."""
        return max(self.length, self.tile)

    def ramp_begin(self, index: int) -> int:
        """First canvas pixel that tile `index` contributes to, past its dead margin (0 for tile 0)."""
        if index == 0:
            return 0
        overlap = self.starts[index - 1] + self.tile - self.starts[index]
        return self.starts[index] + (overlap - self.ramp) // 2

    def finished(self, index: int) -> int:
        """First canvas pixel that is not complete once the tiles up to `index` are blended."""
        return self.length if index + 1 == len(self.starts) else self.ramp_begin(index + 1)

    def span(self, index: int) -> tuple[int, int]:
        """The canvas pixels [begin, end) in which tile `index` has weight."""
        last = index + 1 == len(self.starts)
        return self.ramp_begin(index), self.length if last else self.ramp_begin(index + 1) + self.ramp

    def weights(self, index: int) -> FloatArray:
        """Weights of tile `index` over its `span`, float32 in [0, 1]."""
        begin, end = self.span(index)
        weights = np.ones(end - begin, np.float32)
        rising = raised_cosine(self.ramp)
        if index > 0:
            weights[: self.ramp] = rising
        if index + 1 < len(self.starts):
            weights[len(weights) - self.ramp :] = np.float32(1) - rising
        return weights


def plan_axis(length: int, tile: int = TILE, overlap: int = OVERLAP, step: int = 1) -> Axis:
    """The fewest tiles that cover `length` px with at least `overlap` px in common, spread evenly.

    n = 1 if length <= tile, else ceil((length - overlap) / (tile - overlap));
    start_i = round(i (length - tile) / (n - 1)).

    All of it is counted in steps of `step` px, of which `length` and `tile / 2` are multiples; the overlap is
    rounded up to one.

    Raises:
        ValueError: `length` is not positive, or `overlap` is not in [17, tile / 2].
    """
    if length < 1:
        raise ValueError(f"length must be positive, not {quoted(length)}")
    if not MIN_OVERLAP <= overlap <= tile // 2:
        raise ValueError(f"overlap must be {MIN_OVERLAP} to {tile // 2} px, not {quoted(overlap)}")
    if length <= tile:
        return Axis(length, tile, (0,), 0)
    overlap = math.ceil(overlap / step) * step
    n = math.ceil((length - overlap) / (tile - overlap))
    starts = tuple(step * round(i * ((length - tile) // step) / (n - 1)) for i in range(n))
    strides = [b - a for a, b in itertools.pairwise(starts)]
    ramp = min(MAX_RAMP, tile - max(strides) - 2 * DEAD_MARGIN)
    if n > 2:
        # Keeps consecutive ramps apart, so that at most two tiles share a pixel. Binds only for tiles below
        # 512.
        ramp = min(ramp, *strides)
    return Axis(length, tile, starts, ramp)


def raised_cosine(width: int) -> FloatArray:
    """Rising half of a raised cosine sampled at `width` pixel centres, float32 in (0, 1).

    It is antisymmetric about its middle: w[k] + w[width - 1 - k] = 1.
    """
    phase = (np.arange(width) + 0.5) / max(width, 1)
    return (0.5 - 0.5 * np.cos(np.pi * phase)).astype(np.float32)


def padding_index(length: int, padded: int) -> npt.NDArray[np.intp]:
    """Source index of each of `padded` pixels: the axis itself, its mirror image, then its last mirrored
    pixel.

    The mirror does not repeat the edge pixel and holds at most length - 1 pixels.
    """
    beyond = np.arange(length, padded)
    mirrored = np.maximum(2 * (length - 1) - beyond, 0)
    return np.concatenate([np.arange(length), mirrored])
