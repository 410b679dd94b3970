"""NIQE (Mittal et al. 2013): how far a picture's statistics are from those of pristine photographs.

No reference is needed. Lower is better; the photographs of RealSR themselves are at 6.1, bicubic at 9. It
measures naturalness, not truth: noise lowers it and invented texture does.

As pyiqa's `niqe`, to its last roundings: luma 0.299, 0.587, 0.114 in single precision, rounded to 256
levels; local means whose window sums to 1 as near as single precision holds it; MATLAB's imresize to the
half; blocks of 96 px. The model of pristine pictures (`niqe_pristine.npz`, notice beside it) is the published
one, in the file of BasicSR, Apache-2.0.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np

from tudsr_runtime.metrics.filters import filter_edge
from tudsr_runtime.metrics.pixels import BT601, Array, Floats, require_at_least, rgb
from tudsr_runtime.metrics.resize import imresize

BLOCK = 96
"""Side of the blocks whose features are taken, px; what is left over at the right and below is not seen."""
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
SHAPES = np.arange(0.2, 10.001, 0.001)
"""Shape parameters of the generalised Gaussian that are tried."""


def niqe(picture: Array) -> float:
    """The distance from natural; NaN where no block has any texture (a constant picture).

    Raises:
        InputError: fewer than two blocks of 96 x 96 px.
    """
    return niqe_of_luma(rounded_luma(picture))


def rounded_luma(picture: Array) -> Floats:
    """(h, w) whole levels, 0 to 255, by fused multiplications in single precision.

    One weighted mean of colours in a thousand lies just between two levels; which one it is rounded to moves
    NIQE by up to 0.02.
    """
    colour = rgb(picture).astype(np.float32)
    total = colour[..., 0] * np.float32(BT601[0])
    for channel in (1, 2):
        product = colour[..., channel].astype(np.float64) * np.float64(np.float32(BT601[channel]))
        total = (product + total).astype(np.float32)
    return np.round(total * np.float32(255)).astype(np.float64)


def niqe_of_luma(luma: Floats) -> float:
    """The same of (h, w) whole levels, 0 to 255."""
    require_at_least(luma, BLOCK, 2 * BLOCK, "NIQE")
    features = _features(luma)
    known = features[~np.isnan(features).any(1)]
    if len(known) < 2:
        return math.nan
    mean, covariance, _ = _pristine()
    difference = mean - np.nanmean(features, axis=0)
    inverse = np.linalg.pinv((covariance + np.cov(known, rowvar=False)) / 2)
    return float(np.sqrt(difference @ inverse @ difference))


def _features(luma: Floats) -> Floats:
    """(blocks, 36): 18 of each block at full size, 18 at the half."""
    height, width = (side // BLOCK * BLOCK for side in luma.shape)
    full = luma[:height, :width]
    half = imresize(full / 255, height // 2, width // 2) * 255
    return np.concatenate([_of_scale(full, BLOCK), _of_scale(half, BLOCK // 2)], axis=1)


def _of_scale(luma: Floats, side: int) -> Floats:
    """(blocks, 18) of squares of `side` px."""
    blocks = _blocks(_normalised(luma), side)
    columns = [_symmetric(blocks)]
    for shift in NEIGHBOURS:
        columns.append(_asymmetric(blocks * np.roll(blocks, shift, axis=(1, 2))))
    return np.concatenate(columns, axis=1)


def _normalised(luma: Floats) -> Floats:
    """Local mean away, over local deviation and one."""
    window = _pristine()[2]
    mean = filter_edge(luma, window)
    deviation = np.sqrt(np.abs(filter_edge(luma**2, window) - mean**2))
    normalised: Floats = (luma - mean) / (deviation + 1)
    return normalised


def _blocks(x: Floats, side: int) -> Floats:
    """(h, w) to (blocks, side, side)."""
    rows, columns = (length // side for length in x.shape)
    return x.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)


def _symmetric(blocks: Floats) -> Floats:
    shape, left, right = _fit(blocks)
    return np.stack([SHAPES[shape], (left + right) / 2], axis=1)


def _asymmetric(products: Floats) -> Floats:
    shape, left, right = _fit(products)
    mean = (right - left) * _gamma_tables()[1][shape]
    return np.stack([SHAPES[shape], mean, left, right], axis=1)


def _fit(blocks: Floats) -> tuple[Array, Floats, Floats]:
    """An asymmetric generalised Gaussian to each block: place in SHAPES, both scales; NaN if flat."""
    flat = blocks.reshape(len(blocks), -1)
    squares = flat**2
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.sqrt((squares * (flat < 0)).sum(1) / (flat < 0).sum(1))
        right = np.sqrt((squares * (flat > 0)).sum(1) / (flat > 0).sum(1))
        ratio = left / right
        moments = np.abs(flat).mean(1) ** 2 / squares.mean(1)
        wanted = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    of_shape, _, scale = _gamma_tables()
    shape = np.searchsorted((of_shape[1:] + of_shape[:-1]) / 2, wanted).clip(0, len(SHAPES) - 1)
    return shape, left * scale[shape], right * scale[shape]


@functools.cache
def _gamma_tables() -> tuple[Floats, Floats, Floats]:
    """For the shapes a: ratio of moments (rising), gamma(2/a) / gamma(1/a), sqrt(gamma(1/a) / gamma(3/a))."""
    one, two, three = (np.array([math.gamma(k / a) for a in SHAPES]) for k in (1, 2, 3))
    return two**2 / (one * three), two / one, np.sqrt(one / three)


@functools.cache
def _pristine() -> tuple[Floats, Floats, Floats]:
    """Mean (36), covariance (36, 36) of pristine pictures' features, and the window's 7 taps of one axis.

    The window keeps the sum that it has in pyiqa, 1 + 1.1e-8: in flat areas, whose pixels all equal their
    local mean, it decides on which side of 0 all of them are counted. Without it, noise of the last digit
    would, and NIQE of a picture with flat areas would vary by up to 0.12 from program to program.
    """
    with np.load(Path(__file__).with_name("niqe_pristine.npz"), allow_pickle=False) as file:
        window = file["gaussian_window"]
        total = window.astype(np.float32).astype(np.float64).sum()
        return file["mu_pris_param"][0], file["cov_pris_param"], window.sum(0) * math.sqrt(total)
