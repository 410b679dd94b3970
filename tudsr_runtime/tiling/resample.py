"""Resampling of pictures in float32, whole or as a stream of rows.

Arrays are planar: (channels, height, width). A stream of rows is an iterator of such arrays of one width,
which stacked along the height give the picture; how many rows each holds is up to its source. No function
here clamps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tudsr_runtime.planes import FloatArray

Rows = Iterator[FloatArray]

BLOCK_ROWS = 64
"""Rows that a stream produces at a time: few enough to stay in cache, enough to be worth a numpy call."""
LANCZOS_SUPPORT = 3


class RowBuffer:
    """A window onto a stream of rows that slides only forward. Not safe to share between threads."""

    def __init__(self, source: Rows) -> None:
        self._source = source
        self._end = 0
        self._bands: deque[tuple[int, FloatArray]] = deque()

    def rows(self, begin: int, end: int) -> FloatArray:
        """Rows [begin, end) as one array, not to be written to; pulls what is missing from the source."""
        while self._end < end:
            band = next(self._source)
            self._bands.append((self._end, band))
            self._end += band.shape[1]
        parts = [
            band[:, max(begin - first, 0) : end - first]
            for first, band in self._bands
            if first < end and begin < first + band.shape[1]
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def drop(self, begin: int) -> None:
        """Forget the rows before `begin`; a band that reaches beyond it stays whole."""
        while self._bands and self._bands[0][0] + self._bands[0][1].shape[1] <= begin:
            self._bands.popleft()


def upsample(x: FloatArray, factor: int) -> FloatArray:
    """Bilinear enlargement of (c, h, w) to (c, h factor, w factor) with half-pixel centres, not antialiased.

    Equal to torch's `interpolate(mode="bilinear", align_corners=False)`.
    """
    return upsample_rows(upsample_columns(x, factor), factor)


def upsample_stream(source: Rows, height: int, factor: int) -> Rows:
    """`upsample` of a stream of `height` rows."""
    if factor == 1:
        yield from source
        return
    buffer = RowBuffer(upsample_columns(band, factor) for band in source)
    step = max(1, BLOCK_ROWS // factor)
    for begin in range(0, height, step):
        end = min(begin + step, height)
        yield upsample_between(buffer.rows(max(begin - 1, 0), min(end + 1, height)), begin, end, factor)
        buffer.drop(end - 1)


def upsample_between(x: FloatArray, begin: int, end: int, factor: int) -> FloatArray:
    """Rows [begin factor, end factor) of a vertical bilinear enlargement.

    `x` holds the rows [begin - 1, end + 1) of the picture, as far as these exist.
    """
    above = begin - max(begin - 1, 0)
    grown = upsample_rows(x, factor)
    return grown[:, above * factor : (above + end - begin) * factor]


def area_average(x: FloatArray, factor: int) -> FloatArray:
    """Mean over factor x factor blocks: (c, h factor, w factor) to (c, h, w)."""
    c, h, w = x.shape
    rows = x.reshape(c, h // factor, factor, w).mean(axis=2)
    means: FloatArray = rows.reshape(c, h // factor, w // factor, factor).mean(axis=3, dtype=np.float32)
    return means


def resize(x: FloatArray, height: int, width: int) -> FloatArray:
    """Antialiased Lanczos resize of (c, h, w) to (c, height, width). It can overshoot the input's range."""
    if x.shape[1:] == (height, width):
        return x
    return _resize_box(x, height, width, 0.0, float(x.shape[1]))


def resize_stream(
    source: Rows, from_height: int, height: int, width: int, beyond: tuple[int, int] = (0, 0)
) -> Rows:
    """`resize` of a stream of `from_height` rows to (height, width).

    `beyond`: px (left and right, above and below) by which the stream's picture is larger than what is
    resized. The filter looks at them.
    """
    buffer = RowBuffer(source)
    across, around = beyond
    scale = from_height / height
    support = LANCZOS_SUPPORT * max(scale, 1.0) + 1
    for begin in range(0, height, BLOCK_ROWS):
        end = min(begin + BLOCK_ROWS, height)
        first = max(-around, math.floor(begin * scale - support))
        last = min(from_height + around, math.ceil(end * scale + support))
        window = buffer.rows(first + around, last + around)
        yield _resize_box(window, end - begin, width, begin * scale - first, end * scale - first, across)
        buffer.drop(max(0, math.floor(end * scale - support) + around))


def gaussian_kernel(sigma: float) -> FloatArray:
    """Samples of a Gaussian out to 4 sigma, normalised to sum 1."""
    radius = math.ceil(4 * sigma)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    normalised: FloatArray = (kernel / kernel.sum()).astype(np.float32)
    return normalised


def correlate(x: FloatArray, kernel: FloatArray, axis: int) -> FloatArray:
    """Correlation with an odd `kernel` along `axis`, the edge pixel repeated beyond the edge."""
    radius = len(kernel) // 2
    pad = [(0, 0)] * x.ndim
    pad[axis] = (radius, radius)
    return correlate_valid(np.pad(x, pad, mode="edge"), kernel, axis)


def correlate_valid(x: FloatArray, kernel: FloatArray, axis: int) -> FloatArray:
    """Correlation along `axis` where the kernel lies inside: the axis shrinks by len(kernel) - 1."""
    x = np.moveaxis(x, axis, 0)
    n = len(x) - len(kernel) + 1
    total = x[:n] * kernel[0]
    for offset, weight in enumerate(kernel[1:], start=1):
        total += x[offset : offset + n] * weight
    return np.moveaxis(total, 0, axis)


def _phases(factor: int) -> list[tuple[int, float]]:
    """(first neighbour, relative; weight of the second) of each output pixel that one input pixel becomes."""
    positions = [(k + 0.5) / factor - 0.5 for k in range(factor)]
    return [(math.floor(p), p - math.floor(p)) for p in positions]


def upsample_rows(x: FloatArray, factor: int) -> FloatArray:
    c, h, w = x.shape
    edged = np.concatenate([x[:, :1], x, x[:, -1:]], axis=1)
    out = np.empty((c, h, factor, w), np.float32)
    for k, (first, weight) in enumerate(_phases(factor)):
        low, high = edged[:, 1 + first : 1 + first + h], edged[:, 2 + first : 2 + first + h]
        _mix(low, high, weight, out[:, :, k])
    return out.reshape(c, h * factor, w)


def upsample_columns(x: FloatArray, factor: int) -> FloatArray:
    c, h, w = x.shape
    edged = np.concatenate([x[:, :, :1], x, x[:, :, -1:]], axis=2)
    out = np.empty((c, h, w, factor), np.float32)
    for k, (first, weight) in enumerate(_phases(factor)):
        low, high = edged[:, :, 1 + first : 1 + first + w], edged[:, :, 2 + first : 2 + first + w]
        _mix(low, high, weight, out[..., k])
    return out.reshape(c, h, w * factor)


def _mix(low: FloatArray, high: FloatArray, weight: float, out: FloatArray) -> None:
    """out = low + (high - low) weight, which keeps constants exactly."""
    np.subtract(high, low, out=out)
    out *= np.float32(weight)
    out += low


def _resize_box(
    x: FloatArray, height: int, width: int, top: float, bottom: float, across: int = 0
) -> FloatArray:
    """Rows [top, bottom) of `x`, without `across` columns on either side, resized to (height, width); the
    filter also sees what is around them."""
    box = (float(across), top, float(x.shape[2] - across), bottom)
    out = np.empty((x.shape[0], height, width), np.float32)
    for plane, resized in zip(x, out, strict=True):
        image = Image.fromarray(np.ascontiguousarray(plane))
        resized[...] = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))
    return out
