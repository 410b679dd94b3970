"""Notes on what a picture file holds and no result will: of its pixels, and of its blocks."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction

from PIL import Image

from tudsr_runtime.pictures.containers import Parts, avif_items, boxes
from tudsr_runtime.pictures.pillow import StillTiff

C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")

IPTC, IPTC_DIGEST = 0x0404, 0x0425
"""Photoshop's image resources that are treated elsewhere, or only count the octets of one that is."""

STRUCTURAL = {
    "PNG": {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"eXIf",
            b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"caBX"},
    "WEBP": {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP", b"EXIF", b"XMP ", b"C2PA"},
    "AVIF": {b"ftyp", b"meta", b"mdat", b"free", b"skip"},
}  # fmt: skip
"""Parts that are treated elsewhere or are the picture itself; others are named in a note."""

SEGMENTS = {
    b"COM": (b"",),
    b"APP0": (b"JFIF\0", b"JFXX\0"),
    b"APP1": (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"),
    b"APP2": (b"ICC_PROFILE\0", b"MPF\0", b"urn:iso:std:iso:ts:21496:-1"),
    b"APP11": (b"JP",),
    b"APP13": (b"Photoshop 3.0\0",),
    b"APP14": (b"Adobe",),
}
"""The same of a JPEG, and how they begin."""

COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
"""Channels of a TIFF that are colour, by its PhotometricInterpretation."""

BMP_HEAD = 54
"""Bytes before the pixels of a BMP of the usual kind, and the least that says what is asked here."""


def of_pixels(image: Image.Image, data: bytes, kind: str) -> Iterator[str]:
    """What of the picture itself is left out."""
    extra = _further_channels(image)
    if extra:
        yield f"channels of the TIFF beyond colour and transparency are dropped: {extra}"
    if kind == "BMP" and _has_fourth_byte(data):
        yield "the fourth byte of each pixel, which some programs take for transparency, is dropped"
    if kind == "AVIF" and any(name == b"clap" for name, _ in avif_items(data).primary):
        yield "the crop that the file asks for (clap) is not applied"


def of_blocks(image: Image.Image, data: bytes, parts: Parts, kind: str) -> Iterator[str]:
    """What beside the picture is left out: it has no place, is there twice, or is damaged."""
    across, down = _shape(image, data, kind)
    if across != down:
        ratio = Fraction(across / down).limit_denominator(1000)
        yield f"the shape of a pixel, {ratio.numerator} to {ratio.denominator}, is dropped"
    if kind == "JPEG":
        yield from _of_jpeg(image, parts)
    yield from (f"the text {name} is damaged and dropped" for name in _damaged_texts(parts))
    if kind == "BMP" and len(data) > (end := _end_of_bmp(data)):
        yield f"{len(data) - end} bytes behind the picture are dropped"
    if kind == "AVIF":
        provenance = b"uuid", C2PA_UUID
        parts = Parts(tuple(box for box in boxes(data) if (box[0], box[1][:16]) != provenance))
    yield from _without_place(parts, kind)


def _further_channels(image: Image.Image) -> int:
    if not isinstance(image, StillTiff) or image.grey_alpha:
        return 0
    samples, colours = image.tag_v2.get(277, 1), COLOURS.get(image.tag_v2.get(262, -1))
    if colours is None or not isinstance(samples, int):
        return 0
    return max(0, samples - colours - image.has_transparency_data)


def _has_fourth_byte(data: bytes) -> bool:
    """Whether the octet that a BMP of 32 bits leaves unused says something."""
    if len(data) < BMP_HEAD or struct.unpack("<IHI", data[14:18] + data[28:34])[1:] != (32, 0):
        return False
    begin = int.from_bytes(data[10:14], "little")
    # Where all are 0 or all are 255, nobody reads anything into them.
    return set(data[begin + 3 : _end_of_bmp(data) : 4]) not in ({0}, {255}, set())


def _end_of_bmp(data: bytes) -> int:
    """Where the file says that it ends; what is no BMP of the usual kind, or says nothing, has no end."""
    stated = int.from_bytes(data[2:6], "little")
    if len(data) < BMP_HEAD or int.from_bytes(data[14:18], "little") < 40 or stated <= BMP_HEAD:
        return len(data)
    return stated


def _shape(image: Image.Image, data: bytes, kind: str) -> tuple[float, float]:
    """Width to height of a pixel, where the file says nothing else of its resolution."""
    info = image.info
    found: object = None
    if kind == "PNG" and "dpi" not in info:
        # Stated are pixels per length: more of them, and each is smaller.
        found = tuple(reversed(info.get("aspect", ())))
    elif kind == "JPEG" and info.get("jfif_unit") == 0:
        found = tuple(reversed(info.get("jfif_density", ())))
    elif isinstance(image, StillTiff) and image.tag_v2.get(296) == 1:
        found = (image.tag_v2.get(283), image.tag_v2.get(282))
    elif kind == "AVIF":
        box = next((body for name, body in avif_items(data).primary if name == b"pasp"), b"")
        found = struct.unpack(">II", box) if len(box) == 8 else None
    try:
        across, down = (float(side) for side in found)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ZeroDivisionError):
        return 1, 1
    return (across, down) if 1e-3 < across < 1e6 and 1e-3 < down < 1e6 else (1, 1)


def _of_jpeg(image: Image.Image, parts: Parts) -> Iterator[str]:
    if len(parts.named(b"COM")) > 1:
        yield "of several comments the last is used"
    if sum(body.startswith(SEGMENTS[b"APP1"][1]) for body in parts.named(b"APP1")) > 1:
        yield "of several XMP blocks the last is used"
    resources = image.info.get("photoshop")
    others = set(resources) - {IPTC, IPTC_DIGEST} if isinstance(resources, dict) else set()
    if others:
        shown = ", ".join(f"0x{number:04x}" for number in sorted(others)[:20])
        yield f"Photoshop's blocks (paths, guides and the like) are dropped: {shown}"


def _damaged_texts(parts: Parts) -> list[str]:
    """Keywords of packed texts of a PNG that cannot be unpacked; Pillow takes them for empty."""
    damaged = []
    for body in parts.named(b"zTXt"):
        key, _, packed = body.partition(b"\0")
        try:
            zlib.decompressobj().decompress(packed[1:], 1)
        except zlib.error:
            damaged.append(_printable(key[:79]))
    return damaged


def _without_place(parts: Parts, kind: str) -> list[str]:
    """A note that names the parts for which no place is known."""
    if kind == "JPEG":
        names = [name for name, body in parts.parts if not body.startswith(SEGMENTS.get(name, ()))]
    else:
        names = [name for name, _ in parts.parts if name not in STRUCTURAL.get(kind, ())]
    shown = ", ".join(dict.fromkeys(_printable(name) for name in names[:100]))
    what = {"PNG": "PNG chunks", "JPEG": "JPEG segments", "WEBP": "WebP chunks", "AVIF": "AVIF boxes"}.get(
        kind
    )
    return [f"{what} that have no place in the result are dropped: {shown}"] if shown else []


def _printable(name: bytes) -> str:
    return "".join(chr(octet) if 32 < octet < 127 else "?" for octet in name)
