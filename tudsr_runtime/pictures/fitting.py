"""What becomes, in each format, of what a picture carries."""

from __future__ import annotations

import struct
from typing import Any

from PIL import Image

from tudsr_runtime.pictures.carried import Carried, Text
from tudsr_runtime.pictures.formats import FORMATS
from tudsr_runtime.pictures.geo import scaled_geo
from tudsr_runtime.pictures.metadata import fitting_icc
from tudsr_runtime.pictures.picture import Layout, Picture
from tudsr_runtime.pictures.pillow import DamageIgnored
from tudsr_runtime.pictures.xmp import scaled_xmp

NAMES = {
    "icc": "the colour profile",
    "exif": "EXIF",
    "xmp": "XMP",
    "texts": "texts",
    "comment": "the comment",
    "dpi": "the resolution",
    "iptc": "the IPTC block",
    "geo": "the place on the earth (GeoTIFF)",
}
"""What may be lost, as notes say it."""

MAX_JPEG_BLOCK = {"exif": 65533, "xmp": 65504, "iptc": 65533, "comment": 65533}
"""Bytes: each must fit one JPEG segment."""

COMMENT = "Comment"
"""The PNG text that is the comment of a JPEG."""

X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT, INCH = 282, 283, 296, 2


def fitting_blocks(picture: Picture, layout: Layout, kind: str) -> tuple[dict[str, Any], list[str]]:
    """What the file of that format takes, by the names of `NAMES`; and notes on all that is lost in it."""
    held, extra = FORMATS[kind].carries, picture.carried
    across, down = layout.width / picture.width, layout.height / picture.height
    icc, notes = _icc(picture, layout, "icc" in held)
    if picture.levels.dtype != layout.dtype:
        notes.append(f"16 bits per channel are written with 8 bits in {kind}")
    texts, comment = _commented(extra, kind)
    blocks: dict[str, Any] = {
        "icc": icc,
        "srgb": extra.colour is not None and extra.colour.is_srgb and icc is None,
        "exif": picture.exif,
        "xmp": picture.xmp and scaled_xmp(picture.xmp, across, down),
        "texts": texts,
        "comment": comment,
        "dpi": extra.dpi,
        "iptc": _segment(extra.iptc) if kind == "JPEG" and extra.iptc else extra.iptc,
        "geo": scaled_geo(extra.geo, across, down),
    }
    if extra.geo and not blocks["geo"]:
        notes.append("the place on the earth (GeoTIFF) makes no sense and is dropped")
    if extra.dpi and "dpi" not in held and "exif" in held:
        blocks["exif"] = with_resolution(picture.exif, extra.dpi) or picture.exif
        del blocks["dpi"]
    lost = [NAMES[name] for name, block in blocks.items() if block and name not in held and name != "srgb"]
    if lost:
        shown = (
            f" ({', '.join(text.key for text in texts)[:200]})"
            if "texts" in blocks and texts and "texts" not in held
            else ""
        )
        notes.append(f"{kind} does not hold, so dropped: {', '.join(lost)}{shown}")
    for name, limit in MAX_JPEG_BLOCK.items() if kind == "JPEG" else ():
        block = blocks.get(name)
        if block and len(block) > limit + (4 if name == "iptc" else 0):
            blocks[name] = None
            notes.append(f"{NAMES[name]} is too long for JPEG and dropped")
    return {name: block for name, block in blocks.items() if block and name in held}, notes


def with_resolution(block: bytes | None, dpi: tuple[float, float]) -> bytes | None:
    """The EXIF block, or a new one, with that resolution; None if it is damaged."""
    exif = Image.Exif()
    with DamageIgnored():
        if block:
            exif.load(block)
        exif[X_RESOLUTION], exif[Y_RESOLUTION] = dpi
        exif[RESOLUTION_UNIT] = INCH
        made: bytes = exif.tobytes()
        return made
    return None


def _icc(picture: Picture, layout: Layout, held: bool) -> tuple[bytes | None, list[str]]:
    """The profile, or one that says the same as the file did in another way; and notes."""
    colour = picture.carried.colour
    if picture.icc is None and colour is not None and not colour.is_srgb:
        if not held:
            return None, [
                f"the colours ({colour.name}) cannot be said in this format: they will look different"
            ]
        return colour.profile(layout.grey), [f"the colours ({colour.name}) are written as an ICC profile"]
    icc, lost = fitting_icc(picture.icc, layout.grey)
    return icc, [lost] if lost else []


def _commented(extra: Carried, kind: str) -> tuple[tuple[Text, ...], bytes | None]:
    """Texts and comment, each in the other's place where the format has only that."""
    texts, comment = extra.texts, extra.comment
    if kind == "PNG" and comment:
        return (*texts, Text(COMMENT, _decoded(comment))), None
    if kind == "JPEG":
        found = next((text for text in texts if text.key == COMMENT), None)
        if found is not None and comment is None:
            return tuple(text for text in texts if text is not found), found.value.encode(errors="replace")
    return texts, comment


def _decoded(comment: bytes) -> str:
    try:
        return comment.decode()
    except UnicodeDecodeError:
        return comment.decode("latin-1")


def _segment(iptc: bytes) -> bytes:
    """APP13 of a JPEG with that block alone (Photoshop's image resource 0x0404)."""
    resource = b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)
    body = b"Photoshop 3.0\0" + resource
    # One that is too long is dropped by its length.
    return b"\xff\xed" + struct.pack(">H", min(len(body) + 2, 65535)) + body
