"""Colour correction of the enlarged picture, once, at the integer enlargement, as a stream of rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tudsr_runtime.errors import UsageError, quoted
from tudsr_runtime.planes import FloatArray, Planes
from tudsr_runtime.tiling.resample import (
    BLOCK_ROWS,
    RowBuffer,
    Rows,
    area_average,
    correlate,
    correlate_valid,
    gaussian_kernel,
    upsample_between,
    upsample_columns,
    upsample_stream,
)

ColorMethod = Callable[[Rows, Planes, int], Rows]
"""(rows of the enlarged picture y, input picture x (3, h, w), integer factor) to the corrected rows of y."""

SIGMA = 4.0
"""Standard deviation in input px of the Gaussian that separates colour from detail."""
HALF, QUARTER = np.float32(0.5), np.float32(0.25)
SPACINGS = (1, 2, 4, 8, 16)
"""Output px between the taps of each level of the wavelet transform."""
FLAT = 1e-5
"""Standard deviation, in [-1, 1], below which a channel counts as constant: less than one 16-bit level."""


def match_low_frequencies(enlarged: Rows, x: Planes, factor: int) -> Rows:
    """y + U(G(x - A(y))): the low frequencies of the result follow the input, everywhere by the same rule.

    A averages y down to the input's grid, G is a Gaussian of `SIGMA` input px with the edge pixel repeated
    beyond the edge, U enlarges bilinearly. Rows lag behind their source by the Gaussian's radius.
    """
    height = x.shape[1]
    y = RowBuffer(enlarged)
    kernel = gaussian_kernel(SIGMA)
    step = max(1, BLOCK_ROWS // factor)
    blocks = [(begin, min(begin + step, height)) for begin in range(0, height, step)]
    # x - A(y), blurred along rows.
    difference = RowBuffer(
        correlate(
            x[:, begin:end] - area_average(y.rows(begin * factor, end * factor), factor), kernel, axis=2
        )
        for begin, end in blocks
    )
    for begin, end in blocks:
        above, below = max(begin - 1, 0), min(end + 1, height)
        smooth = _blur_between(difference, height, kernel, above, below)
        correction = upsample_between(upsample_columns(smooth, factor), begin, end, factor)
        yield y.rows(begin * factor, end * factor) + correction
        y.drop(end * factor)
        difference.drop(end - 1 - len(kernel) // 2)


def match_wavelet(enlarged: Rows, x: Planes, factor: int) -> Rows:
    """y + L(U(x) - y): the coarsest band of an a-trous wavelet transform is taken from the input.

    U enlarges bilinearly; L smooths with [1 2 1] / 4 along both axes at the spacings `SPACINGS`, the edge
    pixel repeated beyond the edge (the "wavelet" colour fix of StableSR, in float).
    """
    height = x.shape[1]
    y = RowBuffer(enlarged)

    def differences() -> Rows:
        row = 0
        for band in upsample_stream(_bands(x), height, factor):
            yield band - y.rows(row, row + band.shape[1])
            row += band.shape[1]

    smooth = differences()
    for spacing in SPACINGS:
        smooth = _smoothed(smooth, height * factor, spacing)
    row = 0
    for band in smooth:
        yield y.rows(row, row + band.shape[1]) + band
        row += band.shape[1]
        y.drop(row)


def match_statistics(enlarged: Rows, x: Planes, factor: int) -> Rows:  # noqa: ARG001
    """(y - mean(y)) std(x) / std(y) + mean(x) per channel (AdaIN; Huang and Belongie 2017, Eq. 8).

    The statistics are those of the whole picture, so all of y is held (12 bytes per pixel) before the first
    row comes.
    """
    mean_x, std_x = _statistics(_bands(x))
    bands = list(enlarged)
    mean_y, std_y = _statistics(iter(bands))
    gain = np.divide(std_x, std_y, out=np.zeros_like(std_x), where=std_y > FLAT)
    slope: FloatArray = gain.astype(np.float32)
    offset: FloatArray = (mean_x - gain * mean_y).astype(np.float32)
    for band in bands:
        corrected: FloatArray = band * slope + offset
        yield corrected


def keep(enlarged: Rows, x: Planes, factor: int) -> Rows:  # noqa: ARG001
    """The colours as the model made them."""
    return enlarged


COLOR_METHODS: dict[str, ColorMethod] = {
    "lowfreq": match_low_frequencies,
    "wavelet": match_wavelet,
    "adain": match_statistics,
    "none": keep,
}
DEFAULT_COLOR = "lowfreq"
WHOLE_PICTURE = ("adain",)
"""Methods that hold the whole enlarged picture in float32."""


def color_method(name: str) -> ColorMethod:
    """The method of that name. Raises UsageError if there is none."""
    try:
        return COLOR_METHODS[name]
    except KeyError:
        known = ", ".join(COLOR_METHODS)
        raise UsageError(f"no colour method is called {quoted(name)}; there are {known}") from None


def _bands(x: Planes) -> Rows:
    return (x[:, begin : begin + BLOCK_ROWS] for begin in range(0, x.shape[1], BLOCK_ROWS))


def _blur_between(source: RowBuffer, height: int, kernel: FloatArray, begin: int, end: int) -> FloatArray:
    """Rows [begin, end) of the vertical correlation of `source`, which has `height` rows, with `kernel`."""
    return correlate_valid(_around(source, height, begin, end, len(kernel) // 2), kernel, axis=1)


def _smoothed(source: Rows, height: int, spacing: int) -> Rows:
    """Both axes correlated with [1 2 1] / 4 whose taps are `spacing` px apart."""
    rows = RowBuffer(source)
    for begin in range(0, height, BLOCK_ROWS):
        end = min(begin + BLOCK_ROWS, height)
        x = _around(rows, height, begin, end, spacing)
        down: FloatArray = (x[:, : -2 * spacing] + x[:, 2 * spacing :]) * QUARTER
        down += x[:, spacing:-spacing] * HALF
        x = np.pad(down, ((0, 0), (0, 0), (spacing, spacing)), mode="edge")
        smooth: FloatArray = (x[..., : -2 * spacing] + x[..., 2 * spacing :]) * QUARTER + down * HALF
        yield smooth
        rows.drop(end - spacing)


def _around(source: RowBuffer, height: int, begin: int, end: int, radius: int) -> FloatArray:
    """Rows [begin - radius, end + radius) of `source`, its edge rows repeated beyond the edge."""
    first, last = max(begin - radius, 0), min(end + radius, height)
    rows = source.rows(first, last)
    above, below = first - (begin - radius), end + radius - last
    return np.pad(rows, ((0, 0), (above, below), (0, 0)), mode="edge") if above or below else rows


def _statistics(bands: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel, float64 (3, 1, 1)."""
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    for band in bands:
        count += band.shape[1] * band.shape[2]
        total += band.sum(axis=(1, 2), dtype=np.float64)
        squares += np.square(band, dtype=np.float64).sum(axis=(1, 2))
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean[:, None, None], deviation[:, None, None]
