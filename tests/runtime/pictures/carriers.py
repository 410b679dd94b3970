"""Small picture files that carry one thing each, written by hand where Pillow cannot."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from tudsr_runtime.pictures.formats import FORMATS

SIZE = 16, 12
SUFFIXES = {name: kind.suffixes[0].removeprefix(".") for name, kind in FORMATS.items()}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MAKER = "Marker Maker"
WORDS = "words of the picture"
IPTC = b"\x1c\x02\x78\x00\x07caption"
XMP_HEAD = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
)
XMP_FOOT = "</rdf:RDF></x:xmpmeta>"


def xmp(inside: str) -> bytes:
    """A packet with one description."""
    return f"{XMP_HEAD}<rdf:Description {inside}</rdf:Description>{XMP_FOOT}".encode()


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """A picture of noise; alpha is half transparent."""
    levels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    picture = Image.fromarray(levels)
    if mode == "RGBA":
        picture.putalpha(128)
    if mode == "I;16":
        picture = Image.fromarray(levels[..., 0].astype(np.uint16) * 251)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def with_chunk(name: bytes, body: bytes, whole: bytes | None = None) -> bytes:
    """A PNG with one more chunk behind its header."""
    whole = saved("PNG") if whole is None else whole
    made = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return whole[:33] + made + whole[33:]


def with_segment(marker: int, body: bytes, whole: bytes | None = None) -> bytes:
    """A JPEG with one more segment at its beginning."""
    whole = saved("JPEG") if whole is None else whole
    return whole[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + whole[2:]


def with_tags(**tags: tuple[int, int, Any]) -> bytes:
    """A TIFF with further tags: number, type, value."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, kind, value in tags.values():
        directory.tagtype[tag] = kind
        directory[tag] = value
    return saved("TIFF", tiffinfo=directory)


def riff_with(name: bytes, body: bytes) -> bytes:
    """A WebP with one more chunk at its end."""
    whole = saved("WEBP", lossless=True, exif=exif())
    chunk = name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return whole[:4] + struct.pack("<I", len(whole) - 8 + len(chunk)) + whole[8:] + chunk


def exif() -> bytes:
    """EXIF that names the maker."""
    made = Image.Exif()
    made[271] = MAKER
    return made.tobytes()


def adobe_rgb() -> bytes:
    """EXIF that says Adobe RGB as cameras do."""
    made = Image.Exif()
    made.get_ifd(0x8769)[0xA001] = 0xFFFF
    made.get_ifd(0x8769)[0xA005] = {1: "R03"}
    return made.tobytes()


def nclx(primaries: int, transfer: int) -> bytes:
    """An AVIF that says these code points."""
    whole = saved("AVIF")
    at = whole.index(b"nclx") + 4
    return whole[:at] + struct.pack(">HH", primaries, transfer) + whole[at + 4 :]


def bmp_with_profile() -> bytes:
    """A BMP of version 5 with an embedded profile."""
    width, height = SIZE
    pixels = bytes(3 * width * height)
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    header += bytes(16) + b"DEBM" + bytes(48) + struct.pack("<IIII", 4, 124 + len(pixels), len(SRGB), 0)
    assert len(header) == 124
    body = header + pixels + SRGB
    return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, 14 + 124) + body


def calibrated_bmp() -> bytes:
    """A BMP of version 4 whose header gives the primaries of Display P3 and a gamma of 2.2."""
    width, height = SIZE
    pixels = bytes(3 * width * height)
    columns = (0.4866, 0.2290, 0.0, 0.2657, 0.6917, 0.0451, 0.1982, 0.0793, 1.0439)
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    header += bytes(16) + bytes(4) + struct.pack("<9i", *(int(value * 2**30) for value in columns))
    header += struct.pack("<3I", *[int(2.2 * 2**16)] * 3)
    assert len(header) == 108
    return b"BM" + struct.pack("<IHHI", 122 + len(pixels), 0, 0, 122) + header + pixels


def animated(kind: str) -> bytes:
    """Two frames or pages."""
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


GAIN_XMP = xmp(
    'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"'
    ' xmlns:Container="http://ns.google.com/photos/1.0/container/"'
    ' xmlns:Item="http://ns.google.com/photos/1.0/container/item/">'
    "<Container:Directory><rdf:Seq><rdf:li rdf:parseType='Resource'>"
    "<Container:Item Item:Semantic='GainMap' Item:Length='700'/></rdf:li></rdf:Seq></Container:Directory>"
)
MOTION_XMP = xmp(
    'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" GCamera:MotionPhoto="1"'
    ' GCamera:MicroVideoOffset="700" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="kept">'
)
DEPTH_XMP = xmp('xmlns:GDepth="http://ns.google.com/photos/1.0/depthmap/" GDepth:Data="iVBOR">')
VIDEO = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(600)
P3_XMP = xmp(f'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="{MAKER}">')
AURORA = 12, 13
"""Code points of Display P3."""


def _geo() -> bytes:
    return with_tags(
        scale=(33550, 12, (2.0, 3.0, 0.0)),
        tie=(33922, 12, (4.0, 2.0, 0.0, 500.0, 600.0, 0.0)),
        keys=(34735, 3, (1, 1, 0, 1, 1025, 0, 1, 1)),
    )


def _depth_avif() -> bytes:
    return saved("AVIF", "RGBA").replace(b"auxiliary:alpha", b"auxiliary:depth")


def _gain_avif() -> bytes:
    whole = saved("AVIF", "RGBA")
    at = whole.rindex(b"av01", 0, whole.index(b"iprp"))
    return whole[:at] + b"tmap" + whole[at + 4 :]


P3_CORNERS = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
P3_CHRM = struct.pack(">8I", *(round(100_000 * value) for value in (0.3127, 0.329, *P3_CORNERS)))
IIM = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC
C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")

FILES: dict[str, dict[str, Callable[[], bytes]]] = {
    "transparency": {
        kind: (lambda kind=kind: saved(kind, "RGBA")) for kind in ("PNG", "TIFF", "WEBP", "AVIF")
    },
    "16 bits": {kind: (lambda kind=kind: saved(kind, "I;16")) for kind in ("PNG", "TIFF")},
    "ICC profile": {
        **{kind: (lambda kind=kind: saved(kind, icc_profile=SRGB)) for kind in FORMATS if kind != "BMP"},
        "BMP": bmp_with_profile,
    },
    "EXIF": {
        **{kind: (lambda kind=kind: saved(kind, exif=exif())) for kind in ("PNG", "JPEG", "WEBP", "AVIF")},
        "TIFF": lambda: with_tags(maker=(271, 2, MAKER)),
    },
    "XMP": {
        "PNG": lambda: with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + P3_XMP),
        "TIFF": lambda: with_tags(xmp=(700, 1, P3_XMP)),
        **{kind: (lambda kind=kind: saved(kind, xmp=P3_XMP)) for kind in ("JPEG", "WEBP", "AVIF")},
    },
    "text": {
        "PNG": lambda: with_chunk(b"tEXt", b"parameters\0" + WORDS.encode()),
        "JPEG": lambda: saved("JPEG", comment=WORDS.encode()),
        "TIFF": lambda: with_tags(words=(270, 2, WORDS)),
    },
    "IPTC": {
        "JPEG": lambda: with_segment(0xED, IIM),
        "TIFF": lambda: with_tags(iptc=(33723, 7, IPTC)),
    },
    "dpi": {
        **{kind: (lambda kind=kind: saved(kind, dpi=(300, 300))) for kind in ("PNG", "TIFF", "JPEG", "BMP")},
        **{kind: (lambda kind=kind: saved(kind, exif=_exif_dpi())) for kind in ("WEBP", "AVIF")},
    },
    "wide colour without a profile": {
        "PNG": lambda: with_chunk(b"cICP", bytes([*AURORA, 0, 1])),
        "TIFF": lambda: with_tags(corners=(319, 5, P3_CORNERS)),
        "AVIF": lambda: nclx(*AURORA),
        "BMP": calibrated_bmp,
        **{kind: (lambda kind=kind: saved(kind, exif=adobe_rgb())) for kind in ("JPEG", "WEBP")},
    },
    "HDR (PQ, HLG)": {
        "PNG": lambda: with_chunk(b"cICP", bytes([9, 16, 0, 1])),
        "AVIF": lambda: nclx(9, 18),
    },
    "place on the earth": {"TIFF": _geo},
    "gain map": {
        "JPEG": lambda: saved("JPEG", xmp=GAIN_XMP) + saved("JPEG"),
        "AVIF": _gain_avif,
    },
    "depth map": {"AVIF": _depth_avif, "JPEG": lambda: saved("JPEG", xmp=DEPTH_XMP)},
    "video of a motion photo": {"JPEG": lambda: saved("JPEG", xmp=MOTION_XMP) + VIDEO},
    "provenance (C2PA)": {
        "PNG": lambda: with_chunk(b"caBX", b"\0\0\0\x10jumbjumd...."),
        "JPEG": lambda: with_segment(0xEB, b"JP\0\1\0\0\0\1" + bytes(20)),
        "WEBP": lambda: riff_with(b"C2PA", b"jumb"),
        "TIFF": lambda: with_tags(record=(52545, 7, b"jumb")),
        "AVIF": lambda: saved("AVIF") + struct.pack(">I", 32) + b"uuid" + C2PA_UUID + bytes(8),
    },
    "several pages, animation": {
        kind: (lambda kind=kind: animated(kind)) for kind in ("PNG", "TIFF", "WEBP", "AVIF")
    }
    | {"JPEG": lambda: animated("MPO")},
}
"""What is carried, and in which formats there is a way to."""

NOTED = {
    "transparency": "transparency", "16 bits": "8 bits", "ICC profile": "colour profile", "EXIF": "EXIF",
    "XMP": "XMP",
    "text": "texts (parameters)|comment|EXIF", "IPTC": "IPTC", "dpi": "resolution",
    "wide colour without a profile": "colours (", "place on the earth": "GeoTIFF", "gain map": "HDR gain map",
    "depth map": "depth map", "video of a motion photo": "motion photo", "provenance (C2PA)": "C2PA",
    "several pages, animation": "only the first picture",
}  # fmt: skip
"""Words of the note or error that speaks of it; one of several between |."""


OURS = "by tudsr".encode("utf-16-be")
"""In the description of a profile that tudsr makes."""


def _exif_dpi() -> bytes:
    made = Image.Exif()
    made[282], made[283], made[296] = 300.0, 300.0, 2
    return made.tobytes()


def dpi(image: Image.Image) -> tuple[float, ...]:
    """Dots per inch of an opened result, by the format's own field or by EXIF; rounded."""
    if image.format in ("PNG", "BMP", "JPEG"):
        values = image.info.get("dpi", ())
    else:
        tags = image.getexif()
        values = tuple(float(tags[tag]) for tag in (282, 283) if tag in tags)
    return tuple(round(value) for value in values)


def survives(feature: str, image: Image.Image, content: bytes) -> bool:
    """Whether an opened and decoded result still carries it."""
    tags = image.getexif()
    packet = image.info.get("xmp", b"")
    checks: dict[str, Callable[[], bool]] = {
        "transparency": lambda: image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema()[0] < 255,
        "16 bits": lambda: image.mode == "I;16",
        "ICC profile": lambda: image.info.get("icc_profile") == SRGB,
        "EXIF": lambda: tags.get(271) == MAKER,
        "XMP": lambda: MAKER in (packet if isinstance(packet, str) else packet.decode()),
        "text": lambda: WORDS.encode() in content,
        "IPTC": lambda: IPTC in content,
        "dpi": lambda: dpi(image) == (300, 300),
        "wide colour without a profile": lambda: OURS in image.info.get("icc_profile", b""),
        "place on the earth": lambda: 33550 in getattr(image, "tag_v2", {}),
    }  # fmt: skip
    return feature in checks and checks[feature]()
