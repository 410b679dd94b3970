"""The picture formats that are read and written, one entry each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Format:
    """One format, by Pillow's name for it in `FORMATS`.

    Args:
        name: as people write it.
        suffixes: of its files in lower case; the first is the usual one.
        carries: what a file holds besides pixels, by the names of `fitting.NAMES`, which are those of the
            writer's arguments. `dpi` may be in EXIF; pixels are sRGB if nothing is said.
        grey, alpha, sixteen_bit: whether it holds grey by itself, transparency, 16 bits per channel.
        side, area: the greatest length in px, and the greatest number of px.
        save: options of Pillow's `save`, where Pillow writes it (see `write.ROW_WRITERS`).
    """

    name: str
    suffixes: tuple[str, ...]
    carries: tuple[str, ...] = ()
    grey: bool = True
    alpha: bool = True
    sixteen_bit: bool = False
    side: int = 2**31 - 1
    area: int = 2**62
    save: Mapping[str, Any] = field(default_factory=dict)


FORMATS = {
    "PNG": Format("PNG", (".png",), ("icc", "srgb", "exif", "xmp", "texts", "dpi"), sixteen_bit=True),
    "JPEG": Format(
        "JPEG",
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        ("icc", "exif", "xmp", "comment", "dpi", "iptc"),
        alpha=False,
        side=65500,
        save={"subsampling": 0},
    ),
    "WEBP": Format("WebP", (".webp",), ("icc", "exif", "xmp"), grey=False, side=16383),
    "TIFF": Format("TIFF", (".tif", ".tiff"), ("icc", "exif", "xmp", "dpi", "iptc", "geo"), sixteen_bit=True),
    # A BMP ends at 4 GiB.
    "BMP": Format("BMP", (".bmp", ".dib"), ("dpi",), alpha=False, area=2**32 // 3 - 2**20),
    # 16384 x 16384 px and 32768 px a side are what libavif reads by default.
    "AVIF": Format(
        "AVIF",
        (".avif",),
        ("icc", "exif", "xmp"),
        grey=False,
        side=32768,
        area=16384 * 16384,
        save={"subsampling": "4:4:4", "speed": 8},
    ),
}

FORMAT_OF_SUFFIX = {suffix: name for name, kind in FORMATS.items() for suffix in kind.suffixes}
"""What can be written, by the suffix of the output."""
