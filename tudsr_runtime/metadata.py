"""EXIF, XMP and colour profile: which parts survive in the enlarged picture."""

from __future__ import annotations

import os
import re
import struct
from typing import BinaryIO

from PIL import ExifTags, Image

from tudsr_runtime.xmp import true_of_result

ORIENTATION = int(ExifTags.Base.Orientation)

STRUCTURE = frozenset(
    {
        *range(254, 270), 273, *range(277, 282), 284, *range(288, 294), 297, 301, *range(317, 326),
        *range(330, 348), *range(512, 522), *range(529, 533), 700, 33550, 33723, 33922,
        34264, 34377, 34675, 34732, *range(34735, 34738), 37724, 50844, 52545,
    }
)  # fmt: skip
"""TIFF tags that describe how the old file stores its pixels, or embed other metadata blocks."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

STALE = (
    int(ExifTags.Base.ExifImageWidth), int(ExifTags.Base.ExifImageHeight),
    0x9102, 0x9214, 0xA20E, 0xA20F, 0xA210, 0xA214,
)  # fmt: skip
"""Exif tags in pixels of the old picture (`carried.STALE_EXIF`), and its compression."""

SUB_DIRECTORIES = (int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo), int(ExifTags.IFD.Interop))
"""Tags whose value is a directory of its own."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

PNG_EXIF = ("exif", "Raw profile type exif")
"""Where Pillow shows the EXIF of a PNG: that of its chunk, and the text that ImageMagick used to write."""

XMP_TURN = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|>\s*))[2-8]""")

ICC_SPACES = {b"RGB ": False, b"GRAY": True}
"""Colour space, at byte 16 of an ICC profile, to whether it describes grey."""

EXIF_ERRORS = (OSError, ValueError, SyntaxError, KeyError, TypeError, AttributeError, struct.error)
"""What Pillow raises for damaged EXIF."""


def orientation(image: Image.Image) -> int:
    """EXIF orientation that Pillow leaves to be applied, 1 to 8; 1 if there is none. Decodes no pixels."""
    # Pillow turns a TIFF itself, and gives its size accordingly.
    if image.format == "TIFF":
        return 1
    # For a PNG without EXIF, getexif() would decode the whole picture to look for it at the end.
    if image.format == "PNG" and not any(key in image.info for key in PNG_EXIF) and not _has_late_exif(image):
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except EXIF_ERRORS:
        return 1
    return value if value in range(1, 9) else 1


def upright(image: Image.Image) -> Image.Image:
    """Decode the picture and apply its EXIF orientation."""
    image.load()
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def kept_exif(image: Image.Image) -> tuple[bytes | None, str | None]:
    """EXIF without orientation, thumbnail and the file's structure; and a note if it had to be dropped."""
    try:
        exif = image.getexif()
        for tag in STRUCTURE.union({ORIENTATION}) & set(exif):
            del exif[tag]
        for tag in STALE if ExifTags.IFD.Exif in exif else ():
            exif.get_ifd(ExifTags.IFD.Exif).pop(tag, None)
        return (exif.tobytes() if len(exif) else None), None
    except EXIF_ERRORS:
        return None, "EXIF is damaged and dropped"


def kept_xmp(image: Image.Image) -> bytes | None:
    """XMP without the orientation that has been applied and what no longer holds; None if damaged."""
    xmp = image.info.get("xmp")
    if isinstance(xmp, str):
        xmp = xmp.encode()
    return true_of_result(XMP_TURN.sub(rb"\g<1>1", xmp)) if isinstance(xmp, bytes) and xmp else None


def _has_late_exif(image: Image.Image) -> bool:
    """Whether a PNG that is not decoded yet has EXIF behind its pixels. Looks at the chunks' names alone."""
    file: BinaryIO | None = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None):
        return False
    position = file.tell()
    file.seek(len(PNG_SIGNATURE))
    while (head := file.read(8))[4:] not in (b"eXIf", b"IEND", b""):
        file.seek(int.from_bytes(head[:4]) + 4, os.SEEK_CUR)
    file.seek(position)
    return head[4:] == b"eXIf"


def fitting_icc(icc: bytes | None, grey: bool) -> tuple[bytes | None, str | None]:
    """The profile if it can describe the pixels; and a note if it had to be dropped."""
    if icc is None:
        return None, None
    space = icc[16:20]
    if ICC_SPACES.get(space) == grey:
        return icc, None
    name = space.decode("ascii", "replace").strip()
    return None, f"the colour profile ({name or 'damaged'}) does not fit the output and is dropped"
