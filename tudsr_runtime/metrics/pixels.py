"""What every metric does first: a picture of any kind becomes levels to measure.

A picture is an array (h, w) or (h, w, channels), 1 to 4 channels: grey, grey and alpha, RGB, RGB and alpha;
uint8 or uint16 with white at the top, or floats with white at 1. Alpha is laid over white, as a web page
shows it. Grey counts as three equal channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tudsr_runtime.errors import InputError

Floats = NDArray[np.float64]
Array = NDArray[Any]

BT601 = np.array([0.299, 0.587, 0.114])
"""Luma of full range, in [0, 1] as R, G and B are."""
BT601_STUDIO = np.array([65.481, 128.553, 24.966]) / 255
"""Luma of studio range, without its offset of 16 / 255: the Y of YCbCr."""


def rgb(picture: Array) -> Floats:
    """(h, w, 3) in [0, 1].

    Raises:
        InputError: another number of axes or channels, no pixel, or another dtype.
    """
    channels = picture[..., None] if picture.ndim == 2 else picture
    if channels.ndim != 3 or not 1 <= channels.shape[2] <= 4 or not picture.size:
        raise InputError(f"an array of shape {picture.shape} is no picture: (h, w) or (h, w, 1 to 4) is")
    levels = channels / _white(picture)
    colour = levels[..., :1] if channels.shape[2] <= 2 else levels[..., :3]
    if channels.shape[2] in (2, 4):
        colour = 1 - (1 - colour) * levels[..., -1:]
    return np.broadcast_to(colour, (*colour.shape[:2], 3))


def studio_luma(picture: Array) -> Floats:
    """(h, w), Y of YCbCr (BT.601) in [16 / 255, 235 / 255], as super-resolution papers measure it."""
    luma: Floats = rgb(picture) @ BT601_STUDIO + 16 / 255
    return luma


def full_luma(picture: Array) -> Floats:
    """(h, w), luma of BT.601 in [0, 1]."""
    luma: Floats = rgb(picture) @ BT601
    return luma


def require_same_size(picture: Array, reference: Array) -> None:
    """InputError, with both sizes, where the two pictures differ in size."""
    if picture.shape[:2] != reference.shape[:2]:
        raise InputError(
            f"{size_text(picture)} and {size_text(reference)} are compared: they must be of one size"
        )


def require_at_least(picture: Array, short: int, long: int, what: str) -> None:
    """InputError, with the least size, where the sides of the picture are below `short` and `long` px."""
    sides = sorted(picture.shape[:2])
    if sides[0] < short or sides[1] < long:
        raise InputError(
            f"{what} needs {short} x {long} pixels at least; this picture has {size_text(picture)}"
        )


def size_text(picture: Array) -> str:
    """Width x height, for messages."""
    return f"{picture.shape[1]} x {picture.shape[0]}"


def _white(picture: Array) -> float:
    if picture.dtype in (np.uint8, np.uint16):
        return float(np.iinfo(picture.dtype).max)
    if np.issubdtype(picture.dtype, np.floating):
        return 1.0
    raise InputError(f"levels of type {picture.dtype}: uint8, uint16 and floats in [0, 1] are known")
