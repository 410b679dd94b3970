"""EXIF, XMP and colour profile: which parts survive in the enlarged picture."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import BinaryIO

from PIL import ExifTags, Image, ImageFile

from tudsr_runtime.pictures.pillow import MAX_TEXT_CHUNK, DamageIgnored, StillTiff
from tudsr_runtime.pictures.xmp import true_of_result

ORIENTATION = int(ExifTags.Base.Orientation)

STRUCTURE = frozenset(
    {
        *range(254, 270), 273, *range(277, 282), 284, *range(288, 294), 297, 301, *range(317, 326),
        *range(330, 348), *range(512, 522), *range(529, 533), 700, 33550, 33723, 33922,
        34264, 34377, 34675, 34732, *range(34735, 34738), 37724, 50838, 50839, 50844, 51123, 52545,
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

STALE_EXIF = {
    0x9214: "SubjectArea", 0xA214: "SubjectLocation", 0xA20E: "FocalPlaneXResolution",
    0xA20F: "FocalPlaneYResolution", 0xA210: "FocalPlaneResolutionUnit",
}  # fmt: skip
"""Exif tags in pixels of the old picture."""

DROPPED_EXIF = (
    int(ExifTags.Base.ExifImageWidth), int(ExifTags.Base.ExifImageHeight),
    int(ExifTags.Base.CompressedBitsPerPixel), *STALE_EXIF,
)  # fmt: skip
"""These, and what every camera writes of size and compression, which is left out without a note."""

UNKEPT_TIFF = {
    301: "TransferFunction", 532: "ReferenceBlackWhite", 34377: "Photoshop's blocks",
    37724: "Photoshop's layers", 50844: "RPC coefficients", 52545: "C2PA", 330: "further pictures",
    34732: "layers", 50838: "ImageJ's metadata", 50839: "ImageJ's metadata",
    51123: "Micro-Manager's metadata",
}  # fmt: skip
"""Tags of a TIFF that no result has."""

SUB_DIRECTORIES = (int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo), int(ExifTags.IFD.Interop))
"""Tags whose value is a directory of its own."""

DESCRIPTION, RESOLUTION = int(ExifTags.Base.ImageDescription), (282, 283, 296)
COUNTING = re.compile(r"""^(ImageJ=|\{"shape":|shape=\(|Aperio )|<OME[ >]""")
"""How descriptions begin that programs for microscopes and arrays write."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

PNG_EXIF = ("exif", "Raw profile type exif")
"""Where Pillow shows the EXIF of a PNG: that of its chunk, and the text that ImageMagick used to write."""

XMP_TURN = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|\s*>)\s*)([1-8])""")

MAX_PROFILE = 255 * 65519
"""Bytes of a colour profile: what the segments of a JPEG hold (ICC.1 B.4), less than `MAX_TEXT_CHUNK`."""

ICC_SPACES = {b"RGB ": False, b"GRAY": True}
"""Colour space, at byte 16 of an ICC profile, to whether it describes grey."""

XMP_KEYWORD = b"XML:com.adobe.xmp\0"
"""What the iTXt chunk of a PNG that holds XMP begins with."""


def orientation(image: Image.Image) -> int:
    """How the stored pixels are to be turned, as an EXIF orientation, 1 to 8; decodes no pixels of a file.

    The EXIF tag (of a TIFF, its own; of an AVIF, what its container says) counts before `tiff:Orientation`
    in XMP; of an AVIF, XMP counts never (MIAF 7.3.6.7). What is no number from 1 to 8 counts as not said.
    Pillow's own readers turn a TIFF while they decode: such a picture has been loaded first, and says 1.
    """
    late = _late_blocks(image)
    said = _orientation_of_exif(image, late.get("exif"))
    if said is None and image.format != "AVIF":
        said = _orientation_of_xmp(late.get("xmp", image.info.get("xmp")))
    return said or 1


def upright(image: Image.Image, turn: int | None = None) -> Image.Image:
    """Decode the picture and turn it by an EXIF orientation; None: by its own."""
    image.load()
    transpose = TURNS.get(orientation(image) if turn is None else turn)
    return image if transpose is None else image.transpose(transpose)


def upright_size(image: Image.Image, turn: int) -> tuple[int, int]:
    """Width and height in px of what `upright` makes of it."""
    width, height = image.size
    return (height, width) if turn >= 5 else (width, height)


def _orientation_of_exif(image: Image.Image, late: bytes | None) -> int | None:
    value: object = None
    with DamageIgnored(), suppress(KeyError):
        value = image.stored_orientation if isinstance(image, StillTiff) else _exif(image, late)[ORIENTATION]
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def _orientation_of_xmp(xmp: object) -> int | None:
    found = XMP_TURN.search(as_bytes(xmp) or b"")
    return int(found[2]) if found else None


def _exif(image: Image.Image, late: bytes | None = None) -> Image.Exif:
    """The EXIF of a picture, read anew: what Pillow keeps of a damaged block looks whole the second time."""
    block = late or image.info.get("exif")
    if isinstance(image, StillTiff) or not (isinstance(image, ImageFile.ImageFile) and image.format):
        return image.getexif()
    if not block and isinstance(raw := image.info.get(PNG_EXIF[1]), str):
        block = _from_hex(raw)
    exif = Image.Exif()
    exif.load(block or b"")
    return exif


def _from_hex(text: str) -> bytes:
    """EXIF from the text that ImageMagick used to write: three lines of heading, then digits."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError as error:
        raise OSError("the digits of the EXIF text are damaged") from error


def as_bytes(block: object) -> bytes | None:
    """A block of metadata as Pillow shows it, of whatever type the file says it has; None if it is none."""
    if isinstance(block, str):
        return block.encode("latin-1", "replace")  # how Pillow has read it
    return block if isinstance(block, bytes) else None


def sub_directory(exif: Image.Exif, tag: int) -> Mapping[int, object]:
    """A directory below the first; Pillow's own way to ask would add an empty one."""
    return exif.get_ifd(tag) if tag in exif else {}


def kept_exif(image: Image.Image) -> tuple[bytes | None, str | None]:
    """EXIF without orientation, thumbnail and the file's structure; and a note if it had to be dropped."""
    with DamageIgnored():
        exif = _exif(image)
        for tag in STRUCTURE.union({ORIENTATION}, _counted(exif)) & set(exif):
            del exif[tag]
        for tag in DROPPED_EXIF if ExifTags.IFD.Exif in exif else ():
            exif.get_ifd(ExifTags.IFD.Exif).pop(tag, None)
        # Nothing but a TIFF can be a BigTIFF; Pillow itself does not read such a block again.
        exif.bigtiff = False
        return (_readable(exif.tobytes()) if len(exif) else None), None
    return None, "EXIF is damaged and dropped"


def stale_exif(image: Image.Image) -> list[str]:
    """A note that names tags which are left out because they no longer hold."""
    names: list[str] = []
    with DamageIgnored():
        exif = image.getexif()
        below = sub_directory(exif, ExifTags.IFD.Exif)
        stale = [name for tag, name in STALE_EXIF.items() if tag in below]
        stale += [name for tag, name in UNKEPT_TIFF.items() if tag in exif]
        names = [*stale, *(["ImageDescription, which counts pixels"] if counts_pixels(exif) else [])]
    return [f"tags that no longer hold are dropped: {', '.join(dict.fromkeys(names))}"] if names else []


def counts_pixels(exif: Image.Exif) -> bool:
    """Whether its ImageDescription tells of the size of the picture, or of what a pixel of it measures."""
    description = exif.get(DESCRIPTION)
    return isinstance(description, str) and COUNTING.search(description) is not None


def _counted(exif: Image.Exif) -> tuple[int, ...]:
    """The tags that fall with such a description: resolutions without a unit are in one that it names."""
    if not counts_pixels(exif):
        return ()
    return (DESCRIPTION, *RESOLUTION) if exif.get(RESOLUTION[-1]) == 1 else (DESCRIPTION,)


def kept_xmp(image: Image.Image) -> tuple[bytes | None, str | None]:
    """XMP without the turn that has been applied and what no longer holds; and a note if it was dropped."""
    stated = image.info.get("xmp")
    if not stated:
        return None, None
    xmp = as_bytes(stated)
    kept = true_of_result(XMP_TURN.sub(rb"\g<1>1", xmp)) if xmp else None
    return kept, "XMP is damaged and dropped" if kept is None else None


def kept_icc(image: Image.Image) -> tuple[bytes | None, str | None]:
    """The colour profile; and a note if what the file has in its place is none, or no JPEG could hold it."""
    stated = image.info.get("icc_profile")
    if isinstance(stated, bytes) and len(stated) > MAX_PROFILE:
        return None, f"the colour profile, of {len(stated) / 1e6:.0f} MB, is too large and dropped"
    if isinstance(stated, bytes) or "icc_profile" not in image.info:
        return stated or None, None
    return None, "the colour profile is damaged and dropped"


def _readable(block: bytes) -> bytes:
    """`block`, if all that writes it again can read it. Raises what Pillow does."""
    again = Image.Exif()
    again.load(block)
    for tag in set(SUB_DIRECTORIES) & set(again):
        again.get_ifd(tag)
    return block


def _late_blocks(image: Image.Image) -> dict[str, bytes]:
    """EXIF and XMP that a PNG, not decoded yet, has behind its pixels; `getexif` would decode all of them."""
    file: BinaryIO | None = getattr(image, "fp", None)
    if image.format != "PNG" or file is None or not getattr(image, "tile", None):
        return {}
    found: dict[str, bytes] = {}
    position, behind = file.tell(), False
    file.seek(len(PNG_SIGNATURE))
    while (head := file.read(8))[4:] not in (b"IEND", b""):
        length, kind = int.from_bytes(head[:4]), head[4:]
        behind = behind or kind == b"IDAT"
        if behind and kind in (b"eXIf", b"iTXt"):
            body = file.read(length)
            if kind == b"eXIf":
                found["exif"] = b"Exif\0\0" + body
            elif body.startswith(XMP_KEYWORD):
                found["xmp"] = _text(body[len(XMP_KEYWORD) :])
            file.seek(4, os.SEEK_CUR)
        else:
            file.seek(length + 4, os.SEEK_CUR)
    file.seek(position)
    return found


def _text(body: bytes) -> bytes:
    """The text of an iTXt chunk behind its keyword (PNG 11.3.3.4), as far as it can be unpacked."""
    packed, rest = body[:1] == b"\1", body[2:]
    text = rest.split(b"\0", 2)[-1]
    if not packed:
        return text
    try:
        return zlib.decompressobj().decompress(text, MAX_TEXT_CHUNK)
    except zlib.error:
        return b""


def fitting_icc(icc: bytes | None, grey: bool) -> tuple[bytes | None, str | None]:
    """The profile if it can describe the pixels; and a note if it had to be dropped."""
    if icc is None:
        return None, None
    space = icc[16:20]
    if ICC_SPACES.get(space) == grey:
        return icc, None
    name = space.decode("ascii", "replace").strip()
    return None, f"the colour profile ({name or 'damaged'}) does not fit the output and is dropped"
