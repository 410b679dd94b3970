"""What a picture carries: kept, converted, dropped with a note or refused, as the manual's table says."""

from __future__ import annotations

import io
import re
import struct
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.runtime.conftest import Tudsr
from tests.runtime.pictures import carriers
from tests.runtime.pictures.carriers import FILES, NOTED, SUFFIXES, saved, with_chunk, with_tags, xmp
from tudsr_runtime.errors import InputError, UsageError
from tudsr_runtime.pictures import signalled
from tudsr_runtime.pictures.containers import avif_items, jpeg_parts, png_parts, riff_parts
from tudsr_runtime.pictures.formats import FORMATS
from tudsr_runtime.pictures.geo import scaled_geo
from tudsr_runtime.pictures.read import Metadata, read_header, read_picture
from tudsr_runtime.pictures.write import check_transparency, write_picture
from tudsr_runtime.pictures.xmp import scaled_xmp, true_of_result
from tudsr_runtime.planes import white

MANUAL = Path(__file__).parents[3] / "docs" / "pictures.md"
SCALE = 2
NO_WAY = "\N{EN DASH}"
"""Of a cell of the table: the format cannot carry it."""
CARRIED = [(feature, kind) for feature, kinds in FILES.items() for kind in kinds]


def through(
    content: bytes, source: str, target: str, folder: Path, metadata: Metadata = "keep"
) -> tuple[Image.Image, bytes, tuple[str, ...]]:
    """The file read, doubled and written: what comes out, its bytes and the notes."""
    path, out = folder / f"in.{SUFFIXES[source]}", folder / f"out.{SUFFIXES[target]}"
    path.write_bytes(content)
    picture = read_picture(read_header(path), metadata)
    check_transparency(picture, out)
    values = picture.levels.repeat(SCALE, 0).repeat(SCALE, 1) / np.float32(white(picture.levels.dtype))
    rgb = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    notes = write_picture(picture, [rgb], rgb.shape[1], rgb.shape[0], out)
    with Image.open(out) as image:
        image.load()
    return image, out.read_bytes(), (*picture.notes, *notes)


def fate(feature: str, source: str, target: str, folder: Path) -> str:
    """The word for what becomes of it; nothing is lost without one."""
    words = NOTED.get(feature, "").split("|")
    try:
        image, content, notes = through(FILES[feature][source](), source, target, folder)
    except (InputError, UsageError):
        return "refused"
    said = any(word in note for note in notes for word in words)
    if carriers.survives(feature, image, content):
        return "converted" if said else "kept"
    assert said, f"{feature} of {source} is lost in {target} in silence: {notes}"
    return "dropped"


def table() -> dict[str, dict[str, str]]:
    """The manual's table: a row for each thing, a column for each format."""
    lines = MANUAL.read_text(encoding="utf-8").split("## What else a file carries")[1].split("\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    titles = {"WebP": "WEBP"}
    heads = [titles.get(cell, cell) for cell in rows[0][1:]]
    return {row[0]: dict(zip(heads, row[1:], strict=True)) for row in rows[2:]}


def test_the_manual_lists_what_is_tried() -> None:
    assert list(table()) == list(FILES)
    for feature, row in table().items():
        assert {kind for kind, cell in row.items() if cell != NO_WAY} == set(FILES[feature]), feature


@pytest.mark.parametrize(("feature", "kind"), CARRIED)
def test_the_manual_says_what_becomes_of_it(tmp_path: Path, feature: str, kind: str) -> None:
    assert fate(feature, kind, kind, tmp_path) == table()[feature][kind]


@pytest.mark.parametrize(("feature", "kind"), CARRIED)
def test_nothing_is_lost_in_silence_in_any_format(tmp_path: Path, feature: str, kind: str) -> None:
    for target in FORMATS:
        word = fate(feature, kind, target, tmp_path)
        refusable = ("HDR (PQ, HLG)", "several pages, animation", "transparency")
        assert word != "refused" or feature in refusable


@pytest.mark.parametrize(("source", "target"), list(product(FORMATS, FORMATS)))
def test_the_resolution_is_the_same_number_in_every_format(tmp_path: Path, source: str, target: str) -> None:
    image, _, notes = through(FILES["dpi"][source](), source, target, tmp_path)
    assert carriers.dpi(image) == (300, 300)
    assert not any("resolution" in note for note in notes)


@pytest.mark.parametrize(
    ("feature", "kind"), [pair for pair in CARRIED if pair[0] in ("EXIF", "XMP", "text", "IPTC", "dpi")]
)
def test_strip_leaves_all_of_it_out(tmp_path: Path, feature: str, kind: str) -> None:
    for target in FORMATS:
        image, content, notes = through(FILES[feature][kind](), kind, target, tmp_path, "strip")
        assert not carriers.survives(feature, image, content)
        assert notes == ()


@pytest.mark.parametrize("xml", [carriers.GAIN_XMP, carriers.MOTION_XMP])
def test_xmp_no_longer_announces_what_is_gone(tmp_path: Path, xml: bytes) -> None:
    behind = saved("JPEG") if xml is carriers.GAIN_XMP else carriers.VIDEO
    content = saved("JPEG", xmp=xml, comment=b"c") + behind
    for target in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF"):
        _, written, _ = through(content, "JPEG", target, tmp_path)
        for word in (b"hdrgm:V", b"Container:D", b"Item:S", b"MotionPhoto=", b"MicroVideoOffset"):
            assert word not in written
        assert (b'dc:source="kept"' in written) == (xml is carriers.MOTION_XMP)


def test_notes_reach_stderr_and_json(tmp_path: Path, tudsr: Tudsr) -> None:
    (tmp_path / "in.jpg").write_bytes(FILES["video of a motion photo"]["JPEG"]())
    result = tudsr("upscale", tmp_path / "in.jpg", "--scale", "2", "--json")
    assert result.code == 0
    assert "motion photo" in result.err
    assert any("motion photo" in note for note in result.records[0]["notes"])


def test_hdr_is_refused_while_planning(tmp_path: Path, tudsr: Tudsr) -> None:
    (tmp_path / "in.png").write_bytes(FILES["HDR (PQ, HLG)"]["PNG"]())
    result = tudsr("upscale", tmp_path / "in.png", "--dry-run")
    assert result.code == 3
    assert "PQ" in result.err


STALE = """
<rdf:Description xmlns:t="http://ns.adobe.com/tiff/1.0/"
 xmlns:exif="http://ns.adobe.com/exif/1.0/" t:ImageWidth="16"
 exif:UserComment='a > b' xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/" crs:CropTop="0.1">
<exif:PixelXDimension>16</exif:PixelXDimension><exif:PixelYDimension >12</exif:PixelYDimension >
<xmp:Thumbnails><rdf:Alt><rdf:li><xmp:Thumbnails/>x</rdf:li></rdf:Alt></xmp:Thumbnails>
<dc:title>A title</dc:title></rdf:Description>"""


def test_stale_xmp_goes_in_either_form_and_under_any_prefix() -> None:
    made = true_of_result(STALE.encode())
    assert made is not None
    for word in (b"ImageWidth", b"PixelX", b"PixelY", b"CropTop", b"Thumbnails", b"16", b"12"):
        assert word not in made
    for word in (b"A title", b"'a > b'", b"</rdf:Description>"):
        assert word in made


def test_what_xmp_counts_in_pixels_is_scaled() -> None:
    packet = xmp(
        'GPano:FullPanoWidthPixels="4000" GPano:ProjectionType="equirectangular">'
        "<GPano:CroppedAreaTopPixels>10</GPano:CroppedAreaTopPixels>"
        '<mwg-rs:AppliedToDimensions stDim:w="16" stDim:h="12" stDim:unit="pixel"/>'
        "<stArea:x>0.5</stArea:x>"
    )
    made = scaled_xmp(packet, 2, 3)
    for word in (b'"8000"', b">30<", b'stDim:w="32"', b'stDim:h="36"', b">0.5<", b"equirectangular"):
        assert word in made


@pytest.mark.parametrize("kind", [1, 2])
def test_a_point_of_a_geotiff_stays_where_it_is(tmp_path: Path, kind: int) -> None:
    """The same spot of the picture has the same place on the earth, by tie point and by matrix."""
    matrix = (2.0, 0.5, 0.0, 500.0, 0.25, -3.0, 0.0, 600.0, 0, 0, 0, 0, 0, 0, 0, 1.0)
    keys = (1, 1, 0, 1, 1025, 0, 1, kind)
    tags = {"matrix": (34264, 12, matrix), "keys": (34735, 3, keys), "text": (34737, 2, "WGS 84|")}
    image, _, _ = through(with_tags(**tags), "TIFF", "TIFF", tmp_path)
    made = image.tag_v2
    assert (made[34735], made[34737]) == (keys, "WGS 84|")
    shift = 0.5 if kind == 2 else 0.0
    for i, j in ((0, 0), (7, 3)):
        x, y = (SCALE * (value + shift) - shift for value in (i, j))
        for row in (0, 4):
            old = matrix[row] * i + matrix[row + 1] * j + matrix[row + 3]
            assert made[34264][row] * x + made[34264][row + 1] * y + made[34264][row + 3] == pytest.approx(
                old
            )
    scaled_tags = scaled_geo({33550: (2.0, 3.0, 0.0), 33922: (4.0, 2.0, 0, 5.0, 6.0, 0), 34735: keys}, 2, 3)
    assert scaled_tags[33550] == (1.0, 1.0, 0.0)
    assert scaled_tags[33922] == (2 * (4 + shift) - shift, 3 * (2 + shift) - shift, 0, 5.0, 6.0, 0)


@pytest.mark.parametrize(
    "geo", [{33550: (1.0,)}, {33922: (1.0,) * 5}, {34264: (1.0,) * 15}, {34735: (1, 1, 0, 70000)}]
)
def test_a_geotiff_that_cannot_be_meant_loses_all_of_it_with_a_note(
    tmp_path: Path, geo: dict[int, tuple[float, ...]]
) -> None:
    tags = {f"tag{tag}": (tag, 12, value) for tag, value in geo.items()}
    image, _, notes = through(with_tags(text=(34737, 2, "WGS 84|"), **tags), "TIFF", "TIFF", tmp_path)
    assert any("GeoTIFF" in note for note in notes)
    assert not {33550, 33922, 34264, 34735, 34737} & set(image.tag_v2)


def test_a_turned_geotiff_loses_its_place_with_a_note(tmp_path: Path) -> None:
    content = with_tags(scale=(33550, 12, (1.0, 1.0, 0.0)), turn=(274, 3, 6))
    image, _, notes = through(content, "TIFF", "TIFF", tmp_path)
    assert any("GeoTIFF" in note for note in notes)
    assert 33550 not in image.tag_v2


@pytest.mark.parametrize("chunk", ["gAMA", "cHRM", "both"])
def test_gamma_and_chromaticities_are_written_as_a_profile(tmp_path: Path, chunk: str) -> None:
    content = saved("PNG")
    if chunk != "cHRM":
        content = with_chunk(b"gAMA", struct.pack(">I", 55556), content)
    if chunk != "gAMA":
        content = with_chunk(b"cHRM", carriers.P3_CHRM, content)
    for target in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF"):
        image, _, notes = through(content, "PNG", target, tmp_path)
        assert any("written as an ICC profile" in note for note in notes)
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"])).profile
        red = profile.red_colorant[1]
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).profile.red_colorant[1]
        assert (max(abs(a - b) for a, b in zip(red, srgb, strict=True)) < 0.002) == (chunk == "gAMA")


def test_srgb_said_in_any_way_needs_no_profile(tmp_path: Path) -> None:
    for name, body in ((b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455)), (b"cICP", b"\1\x0d\0\1")):
        image, content, notes = through(with_chunk(name, body), "PNG", "PNG", tmp_path)
        assert b"sRGB" in content
        assert "icc_profile" not in image.info
        assert notes == ()


def test_the_profile_of_srgbs_numbers_is_srgb() -> None:
    """Differential: little CMS from our profile to its own sRGB changes no level by more than rounding."""
    levels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    made = signalled.Colour(signalled.PRIMARIES[1], signalled.SRGB_CURVE, "test").profile(grey=False)
    ours = ImageCms.ImageCmsProfile(io.BytesIO(made))
    converted = ImageCms.profileToProfile(levels, ours, ImageCms.createProfile("sRGB"))
    assert converted is not None
    assert np.abs(np.asarray(converted).astype(int) - np.asarray(levels)).max() <= 1
    grey = ImageCms.ImageCmsProfile(
        io.BytesIO(signalled.Colour(signalled.PRIMARIES[1], (1.0,), "g").profile(grey=True))
    )
    assert grey.profile.xcolor_space.strip() == "GRAY"


def test_cicp_goes_before_a_profile_and_a_profile_before_gamma(tmp_path: Path) -> None:
    profiled = saved("PNG", icc_profile=carriers.SRGB)
    image, _, _ = through(with_chunk(b"cICP", bytes([12, 13, 0, 1]), profiled), "PNG", "PNG", tmp_path)
    assert image.info["icc_profile"] != carriers.SRGB
    image, _, _ = through(with_chunk(b"gAMA", struct.pack(">I", 100000), profiled), "PNG", "PNG", tmp_path)
    assert image.info["icc_profile"] == carriers.SRGB


@pytest.mark.parametrize(
    ("content", "kind", "named"),
    [
        (with_chunk(b"tIME", bytes(7)), "PNG", "tIME"),
        (with_chunk(b"mDCV", bytes(24)), "PNG", "mDCV"),
        (with_chunk(b"sBIT", b"\5\6\5"), "PNG", "sBIT"),
        (carriers.with_segment(0xE5, b"maker's own"), "JPEG", "APP5"),
        (carriers.riff_with(b"abcd", b"x"), "WEBP", "abcd"),
        (with_tags(curve=(301, 3, tuple(range(256)))), "TIFF", "TransferFunction"),
        (saved("PNG") + b"behind", "PNG", "6 bytes behind"),
    ],
)
def test_what_has_no_place_is_named(tmp_path: Path, content: bytes, kind: str, named: str) -> None:
    _, _, notes = through(content, kind, kind, tmp_path)
    assert any(named in note for note in notes)


def test_texts_of_a_png_come_out_whole(tmp_path: Path) -> None:
    texts = {"parameters": "steps: 20, \u00e9", "Comment": "\u6f22\u5b57", "Software": "x" * 70000}
    content = saved("PNG")
    for key, value in texts.items():
        content = with_chunk(b"iTXt", key.encode() + b"\0\0\0en\0\0" + value.encode(), content)
    image, _, notes = through(content, "PNG", "PNG", tmp_path)
    assert {key: str(value) for key, value in image.text.items()} == texts
    assert image.text["Comment"].lang == "en"
    assert notes == ()
    image, _, notes = through(content, "PNG", "JPEG", tmp_path)
    assert image.info["comment"].decode() == texts["Comment"]
    assert any(re.search("texts.*parameters", note) for note in notes)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_parsers_take_any_bytes(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(0, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for parse in (png_parts, jpeg_parts, riff_parts, avif_items, true_of_result):
        parse(damaged)


SAMPLES = [FILES[feature][kind]() for feature, kind in CARRIED] + [STALE.encode(), carriers.GAIN_XMP]
