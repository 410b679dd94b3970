"""What no result holds is named in a note: channels, the shape of pixels, blocks that are damaged."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.pictures.carriers import SIZE, SRGB, saved, with_chunk, with_segment, with_tags
from tests.runtime.pictures.test_carried import through
from tudsr_runtime.errors import InputError
from tudsr_runtime.pictures.read import read_header

tifffile = pytest.importorskip("tifffile", reason="writing foreign TIFFs needs tifffile")

PER_NOTHING = {"resolution": (2, 2), "resolutionunit": "NONE"}
XMP = b"http://ns.adobe.com/xap/1.0/\0"
LEVELS = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 6), np.uint8)


def tiff(levels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, levels, metadata=None, **options)  # type: ignore[arg-type]
    return file.getvalue()


def bmp(fourth: bytes, behind: bytes = b"") -> bytes:
    """2 x 2 px of 32 bits."""
    pixels = b"".join(bytes([10, 20, 30, value]) for value in fourth)
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 32, 0, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + header + pixels + behind


def cropped() -> bytes:
    """An AVIF with the crop of its left half (clap) in the place of its profile.

    It must be essential: the first bit of where ipma associates property 4 with the picture.
    """
    changed = bytearray(saved("AVIF", icc_profile=SRGB))
    changed[changed.index(b"ipma") + 14 + 4] |= 0x80
    whole = bytes(changed)
    at = whole.index(b"colrprof") - 4
    length = struct.unpack(">I", whole[at : at + 4])[0]
    clap = struct.pack(">I4s8i", 40, b"clap", SIZE[0] // 2, 1, SIZE[1], 1, -SIZE[0] // 4, 1, 0, 1)
    return (
        whole[:at]
        + clap
        + struct.pack(">I4s", length - 40, b"free")
        + bytes(length - 48)
        + whole[at + length :]
    )


def stretched() -> bytes:
    """An AVIF that says the shape of its pixels (pasp) in the place of how many bits they have."""
    whole = saved("AVIF")
    at = whole.index(b"pixi")
    return whole[:at] + b"pasp" + struct.pack(">II", 4, 3) + whole[at + 12 :]


def jfif(unit: int, across: int, down: int) -> bytes:
    whole = saved("JPEG")
    return whole[:13] + struct.pack(">BHH", unit, across, down) + whole[18:]


UNKEPT = {
    "two spot channels": (
        lambda: tiff(LEVELS[..., :5], photometric="rgb", extrasamples=["unspecified"] * 2),
        "TIFF",
        "beyond colour and transparency are dropped: 2",
    ),
    "a channel behind alpha": (
        lambda: tiff(LEVELS[..., :5], photometric="rgb", extrasamples=["unassalpha", "unspecified"]),
        "TIFF",
        "beyond colour and transparency are dropped: 1",
    ),
    "a channel behind CMYK": (
        lambda: tiff(LEVELS[..., :5], photometric="separated", extrasamples=["unspecified"]),
        "TIFF",
        "beyond colour and transparency are dropped: 1",
    ),
    "pixels of a PNG half as wide": (
        lambda: with_chunk(b"pHYs", struct.pack(">IIB", 2, 1, 0)),
        "PNG",
        "shape of a pixel, 1 to 2",
    ),
    "pixels of a JPEG twice as wide": (lambda: jfif(0, 1, 2), "JPEG", "shape of a pixel, 2 to 1"),
    "pixels of a TIFF half as wide": (
        lambda: tiff(LEVELS[..., :3], photometric="rgb", resolution=(2, 1), resolutionunit="NONE"),
        "TIFF",
        "shape of a pixel, 1 to 2",
    ),
    "two comments": (
        lambda: with_segment(0xFE, b"one", with_segment(0xFE, b"two")),
        "JPEG",
        "several comments",
    ),
    "two XMP blocks": (
        lambda: with_segment(0xE1, XMP + b"<x:a/>", with_segment(0xE1, XMP + b"<x:b/>")),
        "JPEG",
        "several XMP",
    ),
    "a clipping path": (
        lambda: with_segment(0xED, b"Photoshop 3.0\x008BIM\x07\xd0\0\0\0\0\0\x1a" + bytes(26)),
        "JPEG",
        "Photoshop's blocks.*0x07d0",
    ),
    "a profile that cannot be unpacked": (
        lambda: with_chunk(b"iCCP", b"name\0\0no zlib"),
        "PNG",
        "colour profile is damaged",
    ),
    "a profile whose second half is missing": (
        lambda: with_segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(200)),
        "JPEG",
        "colour profile is damaged",
    ),
    "a text that cannot be unpacked": (
        lambda: with_chunk(b"zTXt", b"Title\0\0no zlib"),
        "PNG",
        "text Title is damaged",
    ),
    "chromaticities of nothing": (lambda: with_chunk(b"cHRM", bytes(32)), "PNG", "colours .* damaged"),
    "a gamma of nothing": (lambda: with_chunk(b"gAMA", bytes(4)), "PNG", "colours .* damaged"),
    "cICP cut short": (lambda: with_chunk(b"cICP", b"\1"), "PNG", "colours .* damaged"),
    "a scale of the earth that is no number": (
        lambda: with_tags(scale=(33550, 12, (float("nan"), 1.0, 0.0))),
        "TIFF",
        "GeoTIFF.* makes no sense",
    ),
    "a fourth byte": (lambda: bmp(b"\0\x80\xff\x40"), "BMP", "fourth byte"),
    "bytes behind a BMP": (lambda: bmp(bytes(4), b"behind"), "BMP", "6 bytes behind the picture"),
    "a crop": (cropped, "AVIF", "crop .* not applied"),
    "pixels of an AVIF a third wider": (stretched, "AVIF", "shape of a pixel, 4 to 3"),
    "a box of an AVIF": (
        lambda: saved("AVIF") + struct.pack(">I4s", 12, b"junk") + b"junk",
        "AVIF",
        "AVIF boxes .* junk",
    ),
    "a box by UUID": (lambda: saved("AVIF") + struct.pack(">I4s", 24, b"uuid") + bytes(16), "AVIF", "uuid"),
}


@pytest.mark.parametrize("name", UNKEPT)
def test_what_is_left_out_is_said(tmp_path: Path, name: str) -> None:
    make, kind, said = UNKEPT[name]
    _, _, notes = through(make(), kind, kind, tmp_path)
    assert any(re.search(said, note) for note in notes), notes


@pytest.mark.parametrize("fourth", [bytes(4), b"\xff" * 4])
def test_an_unused_fourth_byte_is_not_spoken_of(tmp_path: Path, fourth: bytes) -> None:
    assert through(bmp(fourth), "BMP", "BMP", tmp_path)[2] == ()


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_and_transparency_are_no_further_channels(tmp_path: Path, channels: int) -> None:
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    _, _, notes = through(tiff(LEVELS[..., :channels], photometric="rgb", **extra), "TIFF", "TIFF", tmp_path)
    assert notes == ()


@pytest.mark.parametrize(
    "description",
    [
        "ImageJ=1.54f\nimages=1\nunit=um\n",
        '{"shape": [12, 16, 3]}',
        '<?xml version="1.0"?><OME xmlns="x"><Image><Pixels SizeX="16" PhysicalSizeX="0.5"/></Image></OME>',
        "Aperio Image Library v12\n16x12 |AppMag = 20|MPP = 0.5",
    ],
)
@pytest.mark.parametrize("target", ["TIFF", "JPEG"])
def test_a_description_that_counts_pixels_goes_with_its_unit(
    tmp_path: Path, description: str, target: str
) -> None:
    content = tiff(LEVELS[..., :3], photometric="rgb", description=description, **PER_NOTHING)
    image, _, notes = through(content, "TIFF", target, tmp_path)
    exif = image.getexif()
    assert not {270, 282, 283, 296} & set(exif)
    assert any("ImageDescription, which counts pixels" in note for note in notes)


def test_any_other_description_stays(tmp_path: Path) -> None:
    content = tiff(LEVELS[..., :3], photometric="rgb", description="A shape, by ImageJ")
    image, _, notes = through(content, "TIFF", "TIFF", tmp_path)
    assert image.getexif()[270] == "A shape, by ImageJ"
    assert notes == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tiff(LEVELS[..., :3], photometric="rgb", bigtiff=True, byteorder=">"), "BigTIFF .* big-endian"),
        (saved("JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "12 bits"),
    ],
)
def test_kinds_that_are_not_read_are_not_called_damaged_alone(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "in.tif").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_header(tmp_path / "in.tif")
