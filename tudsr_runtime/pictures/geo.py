"""Where on the earth a TIFF lies (GeoTIFF 1.1), before and after it is enlarged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

from PIL import Image

from tudsr_runtime.pictures.pillow import finite_numbers

Geo: TypeAlias = Mapping[int, tuple[float, ...] | str]
"""Values by TIFF tag, one of `GEO_TAGS`."""

GEO = {33550: "ModelPixelScale", 33922: "ModelTiepoint", 34264: "ModelTransformation"}
GEO_TAGS = (*GEO, 34735, 34736, 34737)
"""TIFF tags that place pixels on the earth (GeoTIFF 1.1): grids, and keys that say in what coordinates."""


def geo_of(image: Image.Image) -> Geo:
    """The tags of `GEO_TAGS` that a TIFF has, which Pillow has opened."""
    tags = getattr(image, "tag_v2", {})
    found: dict[int, tuple[float, ...] | str] = {}
    for tag in GEO_TAGS:
        value = tags.get(tag)
        if value is not None:
            # What is no number says nothing of where the others are.
            found[tag] = value if isinstance(value, str) else finite_numbers(value) or (math.nan,)
    return found


def scaled_geo(geo: Geo, across: float, down: float) -> Geo:
    """The tags for a picture `across` times as wide and `down` times as high; empty if they make no sense."""
    if any(math.isnan(value) for tag in geo for value in _of(geo, tag)):
        return {}
    scales, points, matrix = (_of(geo, tag) for tag in GEO)
    keys = _of(geo, 34735)
    # GTRasterTypeGeoKey = 2: the whole numbers are the middles of pixels, else their corners.
    keyed = {int(keys[at]): int(keys[at + 3]) for at in range(4, len(keys) - 3, 4)}
    shift = 0.5 if keyed.get(1025) == 2 else 0.0
    if not all(0 <= key <= 65535 for key in keys):
        return {}
    made = dict(geo)
    if scales:
        if len(scales) != 3:
            return {}
        made[33550] = (scales[0] / across, scales[1] / down, scales[2])
    if points:
        if len(points) % 6:
            return {}
        made[33922] = tuple(
            (value + shift) * (across, down)[at % 6] - shift if at % 6 < 2 else value
            for at, value in enumerate(points)
        )
    if matrix:
        if len(matrix) != 16:
            return {}
        rows = (_rescaled_row(matrix[at : at + 4], across, down, shift) for at in (0, 4, 8, 12))
        made[34264] = tuple(value for row in rows for value in row)
    return made


def _rescaled_row(row: tuple[float, ...], across: float, down: float, shift: float) -> tuple[float, ...]:
    """A row of a matrix for old pixels (i, j) to one for new pixels: i = (i' + shift) / across - shift."""
    i, j, k, offset = row
    moved = offset + i * (shift / across - shift) + j * (shift / down - shift)
    return i / across, j / down, k, moved


def _of(geo: Geo, tag: int) -> tuple[float, ...]:
    value = geo.get(tag, ())
    return () if isinstance(value, str) else value
