"""Transparency: what the model sees under it, and how it grows with the picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Float32 = NDArray[np.float32]


def fill_hidden(rgb: Float32, alpha: NDArray[np.uint8]) -> Float32:
    """Replace the colour of fully transparent pixels by that of their visible surroundings.

    Such pixels usually hold black or white, which would bleed into the edges of what is visible. Each takes
    the alpha-weighted mean of the smallest block (2 x 2, 4 x 4, ... pixels) around it with anything visible.

    Args:
        rgb: float32 (H, W, 3), colour not multiplied by alpha.
        alpha: uint8 (H, W), 0 is transparent.

    Returns:
        float32 (H, W, 3); visible pixels are unchanged.
    """
    visible = alpha > 0
    if visible.all() or not visible.any():
        return rgb
    weight = alpha.astype(np.float32)
    spread = _spread(rgb * weight[..., None], weight)
    return np.where(visible[..., None], rgb, spread)


def resize_alpha(alpha: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Resize uint8 (H, W) to uint8 (height, width), bicubic with antialiasing; a constant stays constant."""
    if alpha.min() == alpha.max():
        return np.full((height, width), alpha.flat[0], dtype=np.uint8)
    return np.asarray(Image.fromarray(alpha).resize((width, height), Image.Resampling.BICUBIC))


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
