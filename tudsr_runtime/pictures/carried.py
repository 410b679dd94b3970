"""What a picture file carries besides its pixels: what can be written again, and notes on what cannot.

`carried` names everything that it finds. Which of it a format holds is said by `formats.FORMATS`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from tudsr_runtime.errors import InputError
from tudsr_runtime.pictures import signalled, unkept
from tudsr_runtime.pictures.containers import (
    Items,
    Parts,
    avif_items,
    boxes,
    jpeg_parts,
    png_head,
    png_parts,
    riff_parts,
)
from tudsr_runtime.pictures.geo import Geo, geo_of
from tudsr_runtime.pictures.metadata import orientation, stale_exif, sub_directory
from tudsr_runtime.pictures.pillow import DamageIgnored, finite_numbers
from tudsr_runtime.pictures.signalled import Colour
from tudsr_runtime.pictures.xmp import said

METRE = 0.0254
"""Metres in an inch."""
MAX_DPI = 65535
"""What every format can write."""

PROVENANCE = "the provenance record (C2PA) speaks of the old pixels and is dropped"
GAIN_MAP = "the HDR gain map is dropped: the result is the picture in standard range"
VIDEO = "the video of the motion photo is dropped"
DEPTH = "the depth map is dropped"

ISO_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1"
ALPHA_TYPES = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
DEPTH_TYPES = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:depth", b"urn:mpeg:hevc:2015:auxid:2")

RAW_PROFILE = "Raw profile type "


@dataclass(frozen=True)
class Text:
    """A text of a PNG; `language` and `translated` belong to its iTXt chunks."""

    key: str
    value: str
    language: str = ""
    translated: str = ""


@dataclass(frozen=True)
class Carried:
    """What may be written again. `colour` counts where there is no profile, or if `colour_wins`.

    `icc` is a profile that Pillow does not show; `dpi` is across and down; `iptc` is the IIM block; `geo` is
    by TIFF tag; `notes` say what is never kept.
    """

    colour: Colour | None = None
    colour_wins: bool = False
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    texts: tuple[Text, ...] = ()
    comment: bytes | None = None
    iptc: bytes | None = None
    geo: Geo = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check_colour(path: Path, kind: str) -> None:
    """Refuse HDR and unknown colour before anything is decoded. Raises InputError."""
    if kind == "PNG":
        _signalled(png_head(path), kind)
    elif kind == "AVIF":
        _signalled(path.read_bytes(), kind)


def carried(path: Path, image: Image.Image, kind: str, *, keep: bool) -> Carried:
    """What the file carries; `image` is the same, decoded. Without `keep` only what the colours depend on.

    Raises:
        InputError: HDR, or colours of an unknown kind.
    """
    # A TIFF, the largest of all, is asked through Pillow.
    data = b"" if kind == "TIFF" else path.read_bytes()
    colour, wins = _signalled(data, kind)
    icc = _icc_of_bmp(data) if kind == "BMP" else None
    if colour is None and icc is None and not image.info.get("icc_profile") and image.mode != "CMYK":
        colour = _colour_of_exif(image)
    parts = _parts(data, kind)
    xmp = _xmp(image)
    notes = [*_other_data(data, parts, kind, xmp)]
    if colour is None and not image.info.get("icc_profile") and _says_colour(parts):
        notes.append("the colours (cICP, gAMA and cHRM) are damaged and dropped")
    if image.format == "MPO":
        # Said already: "only the first picture of the file is used".
        notes = [note for note in notes if not note.endswith("(another JPEG)")]
    notes += unkept.of_pixels(image, data, kind)
    if not keep:
        return Carried(colour, wins, icc, notes=tuple(notes))
    geo = geo_of(image) if kind == "TIFF" else {}
    if geo and orientation(image) != 1:
        geo = {}
        notes.append("the place on the earth (GeoTIFF) is dropped, as the picture is turned")
    texts, lost = _texts(image, parts) if kind == "PNG" else ((), [])
    return Carried(
        colour,
        wins,
        icc,
        _dpi(image, kind),
        texts,
        _comment(image, kind),
        _iptc(image),
        geo,
        (*notes, *lost, *unkept.of_blocks(image, data, parts, kind), *stale_exif(image)),
    )


def _parts(data: bytes, kind: str) -> Parts:
    read = {"PNG": png_parts, "JPEG": jpeg_parts, "WEBP": riff_parts}.get(kind)
    return read(data) if read else Parts()


def _xmp(image: Image.Image) -> bytes:
    xmp = image.info.get("xmp", b"")
    return xmp.encode(errors="replace") if isinstance(xmp, str) else xmp if isinstance(xmp, bytes) else b""


def _signalled(data: bytes, kind: str) -> tuple[Colour | None, bool]:
    """The colour that the file states outside of any profile, and whether it goes before a profile."""
    if kind == "AVIF":
        return _of_nclx(data), False
    if kind == "BMP":
        return _of_calibrated_bmp(data), False
    if kind != "PNG":
        return None, False
    parts = png_parts(data)
    if cicp := next((body for body in parts.named(b"cICP") if len(body) == 4), b""):
        if cicp[2] != 0 or cicp[3] != 1:
            raise _refused("a PNG of YCbCr or narrow range (cICP)")
        return _accepted(signalled.from_code_points("cICP", cicp[0], cicp[1])), True
    if parts.named(b"sRGB"):
        return Colour(signalled.PRIMARIES[1], signalled.SRGB_CURVE, "sRGB"), False
    return _of_gamma(parts), False


def _of_calibrated_bmp(data: bytes) -> Colour | None:
    """The colour of a header (version 4, 5) that gives primaries as X, Y, Z in 2.30 and gammas in 16.16."""
    if len(data) < 122 or int.from_bytes(data[14:18], "little") < 108 or data[70:74] != bytes(4):
        return None
    corners = np.array(struct.unpack("<9i", data[74:110])).reshape(3, 3) / 2**30
    gammas = struct.unpack("<3I", data[110:122])
    points = np.vstack([corners.sum(axis=0), corners])
    sums = points.sum(axis=1)
    if not sums.all():
        return None
    curve = signalled.SRGB_CURVE if not gammas[1] else (gammas[1] / 2**16,)
    xy = tuple((points[:, :2] / sums[:, None]).ravel().tolist())
    return signalled.from_chromaticities("the BMP's header", xy, curve)


def _of_gamma(parts: Parts) -> Colour | None:
    """The colour of gAMA and cHRM; a gamma of 1 / 2.2 stands for the curve of sRGB, as PNG has it."""
    gamma = next((struct.unpack(">I", body)[0] for body in parts.named(b"gAMA") if len(body) == 4), 0)
    corners = next((struct.unpack(">8I", body) for body in parts.named(b"cHRM") if len(body) == 32), ())
    if not gamma and not corners:
        return None
    curve = signalled.SRGB_CURVE if not gamma or abs(gamma - 45455) < 200 else (100_000 / gamma,)
    primaries = tuple(value / 100_000 for value in corners) or signalled.PRIMARIES[1]
    return signalled.from_chromaticities("gAMA and cHRM", primaries, curve)


def _says_colour(parts: Parts) -> bool:
    return any(parts.named(name) for name in (b"cICP", b"gAMA", b"cHRM"))


def _of_nclx(data: bytes) -> Colour | None:
    items = avif_items(data)
    # Of other items, such as an HDR rendition, the colours are others.
    for name, body in items.primary or items.properties:
        if name == b"colr" and body[:4] == b"nclx" and len(body) >= 8:
            return _accepted(signalled.from_code_points("nclx", *struct.unpack(">HH", body[4:8])))
    return None


def _accepted(found: Colour | str | None) -> Colour | None:
    if isinstance(found, str):
        raise _refused(found)
    return found


def _refused(what: str) -> InputError:
    return InputError(what, hint="convert it to sRGB, in standard range, with another program")


def _colour_of_exif(image: Image.Image) -> Colour | None:
    """The colour of TIFF's WhitePoint and PrimaryChromaticities, or of Exif's way to say Adobe RGB."""
    with DamageIgnored():
        exif = image.getexif()
        white, corners = finite_numbers(exif.get(318)), finite_numbers(exif.get(319))
        if len(corners) == 6:
            gamma = finite_numbers(sub_directory(exif, ExifTags.IFD.Exif).get(0xA500))
            curve = gamma[:1] or signalled.TIFF_GAMMA
            primaries = (*(white if len(white) == 2 else signalled.D65), *corners)
            return signalled.from_chromaticities("PrimaryChromaticities", primaries, curve)
        exif_directory = sub_directory(exif, ExifTags.IFD.Exif)
        uncalibrated = exif_directory.get(0xA001) == 0xFFFF and ExifTags.IFD.Interop in exif_directory
        if uncalibrated and exif.get_ifd(ExifTags.IFD.Interop).get(1) == "R03":
            return Colour(signalled.ADOBE_RGB, signalled.ADOBE_GAMMA, "Adobe RGB by Exif")
    return None


def _other_data(data: bytes, parts: Parts, kind: str, xmp: bytes) -> Iterable[str]:
    """Notes on pictures, videos and records beside the picture."""
    rest = parts.rest.strip(b"\0\r\n \t")
    items = avif_items(data) if kind == "AVIF" else Items()
    types = [body[4:].split(b"\0")[0] for name, body in items.properties if name == b"auxC"]
    iso = any(body.startswith(ISO_GAIN_MAP) for body in parts.named(b"APP2"))
    second = b"\xff\xd8\xff" in rest
    gain = (
        (
            second
            and (iso or said(xmp, "hdrgm:", "HDRGainMap") or b"hdr-gain-map/" in rest or ISO_GAIN_MAP in rest)
        )
        or b"tmap" in items.kinds
        or any(b"gainmap" in name.lower() for name in types)
    )
    video = re.search(rb"ftyp[a-zA-Z0-9 ]{4}", rest) is not None
    depth = said(xmp, "GDepth:", "depthData:") or any(name in DEPTH_TYPES for name in types)
    other = [
        name for name in types if name not in (*ALPHA_TYPES, *DEPTH_TYPES) and b"gainmap" not in name.lower()
    ]
    if gain:
        yield GAIN_MAP
    if video:
        yield VIDEO
    if depth:
        yield DEPTH
    if other:
        yield "further pictures in the file are dropped"
    if rest and not (gain or video):
        yield f"{len(rest)} bytes behind the picture are dropped" + (" (another JPEG)" if second else "")
    jumbf = any(body[:2] == b"JP" for body in parts.named(b"APP11"))
    boxed = kind == "AVIF" and any(
        name == b"uuid" and body[:16] == unkept.C2PA_UUID for name, body in boxes(data)
    )
    if jumbf or boxed or parts.named(b"caBX") or parts.named(b"C2PA"):
        yield PROVENANCE
    if any(body.startswith(b"http://ns.adobe.com/xmp/extension/\0") for body in parts.named(b"APP1")):
        yield "the extended part of XMP is dropped"


def _texts(image: Image.Image, parts: Parts) -> tuple[tuple[Text, ...], list[str]]:
    texts, stale = [], []
    for key, value in getattr(image, "text", {}).items():
        if key in ("XML:com.adobe.xmp", RAW_PROFILE + "exif", RAW_PROFILE + "APP1"):
            continue
        if key.startswith((RAW_PROFILE, "Thumb::")):
            stale.append(key)
            continue
        language, translated = (getattr(value, name, "") or "" for name in ("lang", "tkey"))
        texts.append(Text(key, str(value), str(language), str(translated)))
    found = sum(len(parts.named(name)) for name in (b"tEXt", b"zTXt", b"iTXt"))
    notes = [f"texts that speak of the old picture are dropped: {', '.join(stale)[:200]}"] if stale else []
    if found > len(getattr(image, "text", {})):
        notes.append("of several texts with one name the last is used")
    return tuple(texts), notes


def _comment(image: Image.Image, kind: str) -> bytes | None:
    comment = image.info.get("comment") if kind == "JPEG" else None
    return comment if isinstance(comment, bytes) and comment else None


def _iptc(image: Image.Image) -> bytes | None:
    """The IPTC block, of a JPEG's Photoshop segment or of a TIFF's tag."""
    blocks = image.info.get("photoshop")
    found = blocks.get(0x0404) if isinstance(blocks, dict) else None
    found = found or getattr(image, "tag_v2", {}).get(33723)
    if isinstance(found, tuple) and all(isinstance(part, int) and 0 <= part < 2**32 for part in found):
        # Many programs store the octets as if they were numbers.
        order = "<" if getattr(image, "tag_v2").prefix == b"II" else ">"  # noqa: B009
        found = struct.pack(f"{order}{len(found)}I", *found)
    return found if isinstance(found, bytes) and found[:1] == b"\x1c" else None


def _dpi(image: Image.Image, kind: str) -> tuple[float, float] | None:
    """Dots per inch across and down; None where the file says nothing, or only the shape of a pixel."""
    info = image.info
    values: object = info.get("dpi") if kind in ("PNG", "BMP") else None
    if kind == "JPEG" and info.get("jfif_unit") in (1, 2):
        unit = 1 if info["jfif_unit"] == 1 else 2.54
        values = tuple(density * unit for density in info.get("jfif_density", ()))
    if values is None:
        values = _dpi_of_exif(image)
    numbers = finite_numbers(values)
    if len(numbers) != 2 or not all(1 <= number <= MAX_DPI for number in numbers):
        return None
    # A PNG counts per metre: 300 becomes 299.9994.
    across, down = (
        round(number, 1) if abs(number - round(number)) > 0.02 else round(number) for number in numbers
    )
    return float(across), float(down)


def _dpi_of_exif(image: Image.Image) -> tuple[float, ...]:
    with DamageIgnored():
        exif = image.getexif()
        unit = {2: 1.0, 3: 2.54}.get(exif.get(296, 2), 0.0)
        return tuple(number * unit for tag in (282, 283) for number in finite_numbers(exif.get(tag))[:1])
    return ()


def _icc_of_bmp(data: bytes) -> bytes | None:
    """The profile in a BMP whose header (version 5) says that it has one."""
    if len(data) < 138 or int.from_bytes(data[14:18], "little") < 124 or data[70:74] != b"DEBM":
        return None
    begin, length = struct.unpack("<II", data[126:134])
    icc = data[14 + begin : 14 + begin + length]
    return icc if length >= 128 and len(icc) == length else None
