"""Transparency beside a model that knows only colour: hidden colours are replaced, alpha is resampled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tudsr_runtime.planes import Levels, to_levels, white

Float32 = NDArray[np.float32]
BICUBIC_SUPPORT = 3
"""Px beyond an edge that an enlargement looks at, and one more."""


def fill_hidden(colour: Levels, alpha: Levels) -> Levels:
    """Replace the colour of fully transparent pixels by that of their visible surroundings.

    Such pixels usually hold black or white, which would bleed into the edges of what is visible. Each takes
    the alpha-weighted mean of the smallest block (2 x 2, 4 x 4, ... pixels) around it with anything visible.

    Args:
        colour: (h, w) or (h, w, 3) levels, not multiplied by alpha.
        alpha: (h, w) levels, 0 is transparent.

    Returns:
        As `colour`; visible pixels are unchanged.
    """
    visible = alpha > 0
    if visible.all() or not visible.any():
        return colour
    top = np.float32(white(colour.dtype))
    values = np.atleast_3d(colour).astype(np.float32) / top
    weight = alpha.astype(np.float32)
    spread = to_levels(_spread(values * weight[..., None], weight), colour.dtype).reshape(colour.shape)
    filled: Levels = np.where(visible.reshape(*visible.shape, *[1] * (colour.ndim - 2)), colour, spread)
    return filled


class AlphaRows:
    """`alpha` enlarged to (height, width), bicubic with antialiasing, a band of rows at a time.

    A constant stays constant. The rows come as levels of `dtype`. `meets`: whether the left and right
    edge meet, and whether the upper and lower one do.
    """

    def __init__(
        self,
        alpha: Levels,
        width: int,
        height: int,
        dtype: np.dtype[np.generic],
        meets: tuple[bool, bool] = (False, False),
    ) -> None:
        self._step = alpha.shape[0] / height
        self._width = width
        self._dtype = dtype
        low, high = alpha.min(), alpha.max()
        top = np.float32(white(alpha.dtype))
        self._constant = to_levels(low.astype(np.float32) / top, dtype) if low == high else None
        across, down = (BICUBIC_SUPPORT * meet for meet in meets)
        extended = np.pad(alpha, ((down, down), (across, across)), mode="wrap")
        self._left, self._right, self._top = across, across + alpha.shape[1], down
        self._image = Image.fromarray(extended.astype(np.float32) / top)

    def rows(self, begin: int, end: int) -> Levels:
        """Rows [begin, end) of the enlarged alpha."""
        if self._constant is not None:
            return np.full((end - begin, self._width), self._constant, self._dtype)
        box = (self._left, self._top + begin * self._step, self._right, self._top + end * self._step)
        size = (self._width, end - begin)
        return to_levels(np.asarray(self._image.resize(size, Image.Resampling.BICUBIC, box=box)), self._dtype)


def _spread(total: Float32, weight: Float32) -> Float32:
    """`total / weight` where the weight is positive, elsewhere the same of the next coarser grid."""
    if weight.all():
        return total / weight[..., None]
    coarse = _spread(_halve(total), _halve(weight))
    height, width = weight.shape
    beneath = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    known = weight[..., None] > 0
    return np.divide(total, weight[..., None], out=beneath, where=known)


def _halve(values: Float32) -> Float32:
    """Sum blocks of 2 x 2 (less at an odd border)."""
    rows = np.add.reduceat(values, range(0, values.shape[0], 2), axis=0)
    return np.add.reduceat(rows, range(0, values.shape[1], 2), axis=1)
