"""16 bits per colour channel out of Pillow, which decodes colour to 8.

Its decoders keep the first byte of each value. So a picture is decoded twice: as it is, for the high bytes,
and with the opposite byte order claimed, for the low ones. No other codec is needed.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from tudsr_runtime.pictures.metadata import upright
from tudsr_runtime.pictures.pillow import StillTiff

Levels16 = NDArray[np.uint16]

OPAQUE = 65535
BITS_PER_SAMPLE, PLANAR_CONFIGURATION = 258, 284
"""TIFF tags; the second is 2 where each channel is stored by itself."""


def raw_mode(image: ImageFile.ImageFile) -> str:
    """How the file stores its pixels, such as "RGB;16B"; empty once they are decoded."""
    if not image.tile:
        return ""
    if isinstance(image, StillTiff) and image.grey_alpha:
        return image.grey_alpha
    arguments = image.tile[0].args
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def is_sixteen_bit(image: ImageFile.ImageFile) -> bool:
    """Whether `decode_sixteen_bit` applies to the picture, which is not decoded yet.

    Not to a TIFF whose channels are compressed apart: there Pillow gives only the high bytes.
    """
    kind, _, depth = raw_mode(image).partition(";")
    if _planar(image):
        bits = image.tag_v2.get(BITS_PER_SAMPLE, ())  # type: ignore[attr-defined]
        return kind == "R" and set(bits) == {16}
    return depth.startswith("16") and kind in ("RGB", "RGBA", "RGBa", "RGBX", "LA", "La")


def decode_sixteen_bit(
    image: ImageFile.ImageFile, again: ImageFile.ImageFile, orientation: int = 1
) -> Levels16:
    """Decode the picture, opened twice, to upright (h, w, 3) RGB, (h, w, 4) RGBA or (h, w, 2) grey and alpha.

    Colour that the file stores multiplied by alpha is divided by it.
    """
    kind, _, depth = raw_mode(image).partition(";")
    if kind in ("LA", "La"):
        # Two values of two bytes are what Pillow knows as RGBA.
        octets = _decoded(image, None, orientation)
        first, second = octets[..., 0::2], octets[..., 1::2]
        levels = _joined(first, second) if _is_big(depth) else _joined(second, first)
        return _divided_by_alpha(levels) if kind == "La" else levels
    if _planar(image):
        depth = "16B" if image.tag_v2.prefix == b"MM" else "16L"  # type: ignore[attr-defined]
    high, low = (
        (_decoded(image, "16B", orientation), _decoded(again, "16L", orientation))
        if _is_big(depth)
        else (_decoded(image, "16L", orientation), _decoded(again, "16B", orientation))
    )
    levels = _joined(high, low)
    return _divided_by_alpha(levels) if kind == "RGBa" else levels


def with_transparent(levels: Levels16, transparent: object) -> Levels16:
    """Add the alpha that a PNG states as one transparent colour, (h, w, 3) to (h, w, 4); or as it is."""
    if not isinstance(transparent, tuple) or levels.shape[2] != 3:
        return levels
    alpha = np.where((levels == np.array(transparent)).all(axis=2), 0, OPAQUE)
    return np.dstack([levels, alpha.astype(np.uint16)])


def _is_big(depth: str) -> bool:
    return depth == "16B" or (depth == "16N" and sys.byteorder == "big")


def _planar(image: ImageFile.ImageFile) -> bool:
    tags = getattr(image, "tag_v2", {})
    return bool(tags.get(PLANAR_CONFIGURATION) == 2)


def _decoded(image: ImageFile.ImageFile, depth: str | None, orientation: int) -> NDArray[np.uint8]:
    """The pixels, read as if the file stored them with that depth and byte order; None: as RGBA of 8 bits."""
    tiles = []
    for tile in image.tile:
        mode, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        kind = str(mode).partition(";")[0].replace("RGBa", "RGBA")
        raw = f"{kind};{depth}" if depth else "RGBA"
        tiles.append(tile._replace(args=(raw, *rest) if rest else raw))
    image.tile = tiles
    return np.asarray(upright(image, orientation))


def _joined(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> Levels16:
    return np.stack([low, high], axis=-1).view("<u2")[..., 0].astype(np.uint16)


def _divided_by_alpha(levels: Levels16) -> Levels16:
    alpha = levels[..., -1:].astype(np.float32)
    colour = levels[..., :-1] * np.divide(OPAQUE, alpha, out=np.zeros_like(alpha), where=alpha > 0)
    plain = np.clip(np.rint(colour), 0, OPAQUE).astype(np.uint16)
    return np.concatenate([plain, levels[..., -1:]], axis=2)
