"""Colour correction of the enlarged picture, once, at the integer enlargement, as a stream of rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tudsr_runtime.errors import UsageError
from tudsr_runtime.geometry import FloatArray
from tudsr_runtime.resample import (
    BLOCK_ROWS,
    RowBuffer,
    Rows,
    area_average,
    correlate,
    correlate_valid,
    gaussian_kernel,
    upsample_between,
    upsample_columns,
)

ColorMethod = Callable[[Rows, FloatArray, int], Rows]
"""(rows of the enlarged picture y, input picture x (3, h, w), integer factor) to the corrected rows of y."""

SIGMA = 4.0
"""Standard deviation in input px of the Gaussian that separates colour from detail."""


def match_low_frequencies(enlarged: Rows, x: FloatArray, factor: int) -> Rows:
    """y + U(G(x - A(y))): the low frequencies of the result follow the input, everywhere by the same rule.

    A averages y down to the input's grid, G is a Gaussian of `SIGMA` input px with the edge pixel repeated
    beyond the edge, U enlarges bilinearly. Rows lag behind their source by the Gaussian's radius.
    """
    height = x.shape[1]
    y = RowBuffer(enlarged)
    kernel = gaussian_kernel(SIGMA)
    # x - A(y), blurred along rows as they become known: no larger than the input.
    difference = np.empty_like(x)
    known = 0
    step = max(1, BLOCK_ROWS // factor)
    for begin in range(0, height, step):
        end = min(begin + step, height)
        above, below = max(begin - 1, 0), min(end + 1, height)
        needed = min(below + len(kernel) // 2, height)
        if known < needed:
            averaged = area_average(y.rows(known * factor, needed * factor), factor)
            difference[:, known:needed] = correlate(x[:, known:needed] - averaged, kernel, axis=2)
            known = needed
        smooth = _blur_between(difference, kernel, above, below)
        correction = upsample_between(upsample_columns(smooth, factor), begin, end, factor)
        yield y.rows(begin * factor, end * factor) + correction
        y.drop(end * factor)


def keep(enlarged: Rows, x: FloatArray, factor: int) -> Rows:  # noqa: ARG001
    """The colours as the model made them."""
    return enlarged


COLOR_METHODS: dict[str, ColorMethod] = {"lowfreq": match_low_frequencies, "none": keep}
DEFAULT_COLOR = "lowfreq"


def color_method(name: str) -> ColorMethod:
    """The method of that name. Raises UsageError if there is none."""
    try:
        return COLOR_METHODS[name]
    except KeyError:
        known = ", ".join(COLOR_METHODS)
        raise UsageError(f"no colour method is called {name!r}; there are {known}") from None


def _blur_between(x: FloatArray, kernel: FloatArray, begin: int, end: int) -> FloatArray:
    """Rows [begin, end) of the vertical correlation of `x` with `kernel`."""
    radius = len(kernel) // 2
    rows = np.clip(np.arange(begin - radius, end + radius), 0, x.shape[1] - 1)
    return correlate_valid(x[:, rows], kernel, axis=1)
