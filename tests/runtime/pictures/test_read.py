"""Picture files: every mode goes in and comes out again, damage is one clear error, no loss is silent."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps, JpegImagePlugin

from tudsr_runtime.batch.job import check_output_size
from tudsr_runtime.errors import InputError, OutputError, UsageError
from tudsr_runtime.pictures.picture import Picture
from tudsr_runtime.pictures.png import PngWriter
from tudsr_runtime.pictures.read import read_header, read_picture
from tudsr_runtime.pictures.write import Encoding, check_transparency, output_format, write_picture
from tudsr_runtime.planes import white

WIDTH, HEIGHT = 7, 5
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]
ORIENTATION, MAKE, GPS = 0x0112, 0x010F, 0x8825


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def image(mode: str) -> Image.Image:
    """A picture of noise in any mode; what alpha there is is never 0, so that no colour is hidden."""
    if mode == "I;16":
        return Image.fromarray(noise(HEIGHT, WIDTH, dtype=np.uint16))
    if mode == "1":
        return Image.fromarray(noise(HEIGHT, WIDTH)).convert("1")
    if mode == "P":
        return Image.fromarray(noise(HEIGHT, WIDTH, 3)).quantize(16)
    bands = Image.getmodebands(mode)
    pixels = noise(HEIGHT, WIDTH, bands) if bands > 1 else noise(HEIGHT, WIDTH)
    if mode in ("LA", "RGBA"):
        pixels[..., -1] |= 1
    return Image.frombytes(mode, (WIDTH, HEIGHT), pixels.tobytes())


def save(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)
    return path


def copy_through(path: Path, target: Path, **options: object) -> tuple[Image.Image, tuple[str, ...]]:
    """Read, "enlarge" by 1, write, open: the picture and the notes."""
    picture = read_picture(read_header(path))
    check_transparency(picture, target)
    values = picture.levels / np.float32(white(picture.levels.dtype))
    rgb = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    encoding = Encoding(**options)
    notes = write_picture(picture, [rgb[:2], rgb[2:]], picture.width, picture.height, target, encoding)
    with Image.open(target) as opened:
        opened.load()
    return opened, picture.notes + notes


def deep_png(path: Path, colour_type: int, channels: int) -> Path:
    """A 16-bit PNG of noise; Pillow writes none in colour."""
    rows = noise(HEIGHT, WIDTH * channels, dtype=np.uint16).astype(">u2")
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, colour_type, 0, 0, 0)
    path.write_bytes(png(chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND")))
    return path


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def load(_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    return


@pytest.mark.parametrize(
    ("mode", "written"),
    [("1", "L"), ("L", "L"), ("LA", "LA"), ("I;16", "I;16"), ("P", "RGB"), ("RGB", "RGB"), ("RGBA", "RGBA")],
)
def test_every_mode_comes_out_of_a_png_as_it_went_in(tmp_path: Path, mode: str, written: str) -> None:
    source = image(mode)
    result, notes = copy_through(save(source, tmp_path / "in.png"), tmp_path / "out.png")
    assert result.mode == written
    expected = source if mode == "I;16" else source.convert(written)
    assert np.array_equal(np.asarray(result), np.asarray(expected))
    assert notes == ()


def test_palette_with_transparency_becomes_rgba(tmp_path: Path) -> None:
    source = image("P")
    path = save(source, tmp_path / "in.png", transparency=3)
    assert read_header(path).has_alpha
    result, _ = copy_through(path, tmp_path / "out.png")
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGBA"))
    assert result.mode == "RGBA"
    assert set(np.unique(expected[..., 3])) == {0, 255}
    visible = expected[..., 3] > 0
    assert np.array_equal(np.asarray(result)[visible], expected[visible])
    assert np.array_equal(np.asarray(result)[..., 3], expected[..., 3])


@pytest.mark.parametrize(("mode", "transparent"), [("1", 0), ("L", 7), ("RGB", (1, 2, 3))])
def test_one_transparent_colour_becomes_alpha(tmp_path: Path, mode: str, transparent: object) -> None:
    pixels = Image.new(mode, (4, 4), 255 if mode != "RGB" else (9, 9, 9))
    pixels.putpixel((0, 0), transparent)
    result, _ = copy_through(
        save(pixels, tmp_path / "in.png", transparency=transparent), tmp_path / "out.png"
    )
    assert result.mode == ("RGBA" if mode == "RGB" else "LA")
    assert result.getchannel("A").getextrema() == (0, 255)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("transparent", [0, 1, -1])
def test_the_transparent_grey_of_any_depth_becomes_alpha(
    tmp_path: Path, depth: int, transparent: int
) -> None:
    path, top = tmp_path / "in.png", 2**depth - 1
    bits = "".join(f"{level:0{depth}b}" for level in (0, 1, top)).ljust(48, "0")
    header = struct.pack(">IIBBBBB", 3, 1, depth, 0, 0, 0, 0)
    pixels = b"\0" + int(bits, 2).to_bytes(6)[: -(-3 * depth // 8)]
    level = transparent % (top + 1)
    transparency = chunk(b"tRNS", struct.pack(">H", level))
    parts = chunk(b"IHDR", header), transparency, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND")
    path.write_bytes(png(*parts))
    alpha = read_picture(read_header(path)).alpha
    assert alpha is not None
    assert [bool(value) for value in alpha[0]] == [value != level for value in (0, 1, top)]


def test_every_16_bit_grey_survives(tmp_path: Path) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    result, notes = copy_through(save(Image.fromarray(ramp), tmp_path / "in.png"), tmp_path / "out.png")
    assert result.mode == "I;16"
    assert np.array_equal(np.asarray(result), ramp)
    assert notes == ()


def test_16_bit_grey_tiff_is_read_in_either_byte_order(tmp_path: Path) -> None:
    grey = noise(HEIGHT, WIDTH, dtype=np.uint16)
    for order, raw in (("<u2", "I;16"), (">u2", "I;16B")):
        pixels = Image.frombytes(raw, (WIDTH, HEIGHT), grey.astype(order).tobytes())
        result, _ = copy_through(save(pixels, tmp_path / "in.tif"), tmp_path / "out.png")
        assert np.array_equal(np.asarray(result), grey)


def test_12_bit_grey_reaches_white(tmp_path: Path) -> None:
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    # One row of two pixels, 0xFFF and 0x800, in three bytes.
    content = b"II*\0" + struct.pack("<I", 12) + b"\xff\xf8\x00\0" + directory
    (tmp_path / "in.tif").write_bytes(content)
    result, _ = copy_through(tmp_path / "in.tif", tmp_path / "out.png")
    assert np.asarray(result).tolist() == [[65535, round(0x800 / 4095 * 65535)]]


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_16_bit_grey_in_an_8_bit_format_is_said(tmp_path: Path, suffix: str) -> None:
    path = save(image("I;16"), tmp_path / "in.png")
    _, notes = copy_through(path, tmp_path / f"out.{suffix}")
    assert any("8 bits" in note for note in notes)


def test_cmyk_without_profile_says_that_colours_are_approximate(tmp_path: Path) -> None:
    path = save(image("CMYK"), tmp_path / "in.jpg")
    result, notes = copy_through(path, tmp_path / "out.png")
    assert result.mode == "RGB"
    assert any("approximate" in note for note in notes)


def test_cmyk_with_an_unusable_profile_still_works(tmp_path: Path) -> None:
    path = save(image("CMYK"), tmp_path / "in.jpg", icc_profile=b"nonsense" * 40)
    result, notes = copy_through(path, tmp_path / "out.png")
    assert result.mode == "RGB"
    assert "icc_profile" not in result.info
    assert any("profile cannot be used" in note for note in notes)


def test_cmyk_goes_through_its_own_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(picture: Image.Image, _source: object, _target: object, outputMode: str) -> Image.Image:
        return Image.new(outputMode, picture.size, (1, 2, 3))

    # A real CMYK profile is half a megabyte; any profile will do where the conversion is replaced.
    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    path = save(image("CMYK"), tmp_path / "in.jpg", icc_profile=SRGB)
    result, notes = copy_through(path, tmp_path / "out.png")
    assert result.getpixel((0, 0)) == (1, 2, 3)
    assert any("sRGB" in note for note in notes)


def cmyk_profile() -> bytes:
    """An ICC profile (version 2, lut8Type) of neutral inks: L* = 100 (1 - (C + M + Y) / 3) (1 - K)."""
    corners = np.array(np.meshgrid(*[[0, 1]] * 4, indexing="ij")).reshape(4, -1)
    light = np.rint(255 * (1 - corners[:3].mean(axis=0)) * (1 - corners[3])).astype(np.uint8)
    table = np.stack([light, np.full(16, 128, np.uint8), np.full(16, 128, np.uint8)], axis=1)
    line = bytes(range(256))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + line * 4 + table.tobytes() + line * 3
    text = b"neutral inks\0"
    description = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78 + 8)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    body, entries, at = b"", b"", 128 + 4 + 12 * 4
    for name, block in (
        (b"desc", description),
        (b"cprt", b"text" + bytes(4) + text),
        (b"wtpt", white),
        (b"A2B0", lut),
    ):
        block += bytes(-len(block) % 4)
        entries += name + struct.pack(">II", at + len(body), len(block))
        body += block
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white[8:] + bytes(48)
    return header + struct.pack(">I", 4) + entries + body


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_colours_are_those_of_its_profile(tmp_path: Path, suffix: str) -> None:
    inks = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    path = save(inks, tmp_path / f"in.{suffix}", icc_profile=cmyk_profile())
    result, notes = copy_through(path, tmp_path / "out.png")
    # L* = 100 2 / 3 is 161.3 in sRGB; without the profile this would be cyan.
    assert np.abs(np.asarray(result).astype(int) - 161).max() <= 2
    assert notes == ("CMYK: converted to sRGB with its own profile",)


XMP = b'<x tiff:Orientation="6" exif:PixelXDimension="7" dc:title="Title"/>'


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_xmp_is_kept_but_for_orientation_and_size(tmp_path: Path, suffix: str, kept: bool) -> None:
    path = save(image("RGB"), tmp_path / "in.jpg", xmp=XMP)
    picture = read_picture(read_header(path), "keep" if kept else "strip")
    assert (picture.width, picture.height) == (HEIGHT, WIDTH)
    write_picture(picture, [picture.levels / np.float32(255)], HEIGHT, WIDTH, tmp_path / f"out.{suffix}")
    with Image.open(tmp_path / f"out.{suffix}") as written:
        written.load()
        xmp = written.info.get("xmp")
    expected = b'<x tiff:Orientation="1" dc:title="Title"/>' if kept else None
    assert (xmp.encode() if isinstance(xmp, str) else xmp) == expected


def test_avif_of_more_than_8_bits_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(image("RGB"), tmp_path / "in.avif")
    header = read_header(path)
    assert read_picture(header).notes == ()
    # Pillow writes none with 10 bits; its decoder is shown the one with 8 behind another's header.
    content, whole = bytearray(path.read_bytes()), Image.open(path)
    content[content.index(b"av1C") + 6] |= 0x40
    path.write_bytes(content)
    monkeypatch.setattr(Image, "open", lambda *_, **__: whole)
    assert read_picture(header).notes == ("more than 8 bits per channel are processed as 8",)


def test_a_mode_that_cannot_be_meant_is_named(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.zeros((4, 4), np.float32)), tmp_path / "in.tif")
    with pytest.raises(InputError, match=r"in\.tif: pixel format F"):
        read_picture(read_header(path))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_not_written_again(tmp_path: Path, suffix: str, orientation: int) -> None:
    smooth = Image.fromarray(noise(4, 3, 3)).resize((48, 64), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = orientation, "Maker"
    path = save(smooth, tmp_path / f"in.{suffix}", exif=exif, quality=95)
    with Image.open(path) as opened:
        expected = ImageOps.exif_transpose(opened)
    header = read_header(path)
    result, _ = copy_through(path, tmp_path / "out.png")
    assert (header.width, header.height) == result.size == expected.size
    assert np.array_equal(np.asarray(result), np.asarray(expected))
    assert ORIENTATION not in result.getexif()
    assert result.getexif()[MAKE] == "Maker"


@pytest.mark.parametrize("place", ["behind the pixels", "in a text"])
def test_a_png_is_turned_wherever_its_exif_is(tmp_path: Path, place: str) -> None:
    path = save(image("RGB"), tmp_path / "in.png")
    plain, exif = path.read_bytes(), Image.Exif()
    exif[ORIENTATION], exif[MAKE] = 6, "Maker"
    block = exif.tobytes()
    text = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    if place == "in a text":
        text_chunk = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
        path.write_bytes(plain[:33] + text_chunk + plain[33:])
    else:
        path.write_bytes(plain[:-12] + chunk(b"eXIf", block.removeprefix(b"Exif\0\0")) + plain[-12:])
    header = read_header(path)
    result, _ = copy_through(path, tmp_path / "out.png")
    assert (header.width, header.height) == result.size == (HEIGHT, WIDTH)
    assert np.array_equal(np.asarray(result), np.asarray(image("RGB").transpose(Image.Transpose.ROTATE_270)))
    assert dict(result.getexif()) == {MAKE: "Maker"}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_exif_and_profile_are_kept(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[MAKE] = "Maker"
    exif.get_ifd(GPS)[1] = "N"
    exif.get_ifd(0x8769).update({0xA002: 7, 0x8827: 400})
    # Pillow's own TIFFs lack the directories below.
    source = tmp_path / f"in.{suffix.replace('tif', 'png')}"
    path = save(image("RGB"), source, exif=exif, icc_profile=SRGB)
    result, notes = copy_through(path, tmp_path / f"out.{suffix}")
    kept = result.getexif()
    assert (kept[MAKE], kept.get_ifd(GPS)[1]) == ("Maker", "N")
    assert kept.get_ifd(0x8769) == {0x8827: 400}
    assert result.info["icc_profile"] == SRGB
    assert notes == ()


def test_strip_leaves_exif_out_but_keeps_the_profile(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[MAKE] = "Secret Maker"
    path = save(image("RGB"), tmp_path / "in.jpg", exif=exif, icc_profile=SRGB)
    picture = read_picture(read_header(path), metadata="strip")
    rgb = picture.levels / np.float32(255)
    write_picture(picture, [rgb], WIDTH, HEIGHT, tmp_path / "out.jpg")
    written = (tmp_path / "out.jpg").read_bytes()
    assert b"Secret Maker" not in written
    assert SRGB in written


def test_a_profile_that_does_not_fit_is_dropped_and_said(tmp_path: Path) -> None:
    path = save(image("RGB"), tmp_path / "in.png", icc_profile=GREY_PROFILE)
    result, notes = copy_through(path, tmp_path / "out.png")
    assert "icc_profile" not in result.info
    assert any("GRAY" in note for note in notes)


def test_damaged_exif_costs_only_the_exif(tmp_path: Path) -> None:
    path = save(image("RGB"), tmp_path / "in.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    result, notes = copy_through(path, tmp_path / "out.png")
    assert np.array_equal(np.asarray(result), np.asarray(image("RGB")))
    assert len(result.getexif()) == 0
    assert notes


def test_exif_too_long_for_jpeg_is_dropped_and_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[MAKE] = "M" * 70000
    path = save(image("RGB"), tmp_path / "in.png", exif=exif)
    result, notes = copy_through(path, tmp_path / "out.jpg")
    assert len(result.getexif()) == 0
    assert any("too long" in note for note in notes)


def test_jpeg_is_written_without_chroma_subsampling(tmp_path: Path) -> None:
    path = save(image("RGB"), tmp_path / "in.png")
    copy_through(path, tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as opened:
        assert JpegImagePlugin.get_sampling(opened) == 0


def test_quality_is_passed_on(tmp_path: Path) -> None:
    path = save(Image.fromarray(noise(64, 64, 3)), tmp_path / "in.png")
    for suffix in ("jpg", "webp"):
        sizes = []
        for quality in (10, 95):
            copy_through(path, tmp_path / f"out.{suffix}", quality=quality)
            sizes.append((tmp_path / f"out.{suffix}").stat().st_size)
        assert sizes[0] < sizes[1]


@pytest.mark.parametrize(("grey", "mode"), [(False, "RGB"), (True, "L")])
def test_levels_are_rounded_and_clipped(tmp_path: Path, grey: bool, mode: str) -> None:
    values = np.array([[-0.1, 0.4 / 255, 0.6 / 255, 254.4 / 255, 254.6 / 255, 1.1]], np.float32)
    rgb = np.repeat(values[..., None], 3, axis=2)
    picture = Picture(np.zeros((1, 6) if grey else (1, 6, 3), np.uint8))
    write_picture(picture, [rgb], 6, 1, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as made:
        assert made.mode == mode
        assert np.asarray(made).reshape(6, -1)[:, 0].tolist() == [0, 0, 1, 254, 255, 255]


def test_jpeg_refuses_to_lose_transparency_but_takes_an_opaque_alpha(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 128))
    with pytest.raises(UsageError, match="transparency"):
        copy_through(save(clear, tmp_path / "clear.png"), tmp_path / "out.jpg")
    opaque = Image.new("RGBA", (4, 4), (10, 20, 30, 255))
    result, _ = copy_through(save(opaque, tmp_path / "opaque.png"), tmp_path / "out.jpg")
    assert result.mode == "RGB"


def test_webp_keeps_alpha(tmp_path: Path) -> None:
    result, _ = copy_through(save(image("RGBA"), tmp_path / "in.png"), tmp_path / "out.webp")
    assert np.array_equal(np.asarray(result.getchannel("A")), np.asarray(image("RGBA").getchannel("A")))


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "bmp", "avif"])
def test_cut_files_are_an_input_error_or_whole(tmp_path: Path, kind: str) -> None:
    source = Image.fromarray(noise(24, 24, 3))
    whole = save(source, tmp_path / f"whole.{kind}").read_bytes()
    path = tmp_path / f"cut.{kind}"
    refused = 0
    for length in np.linspace(0, len(whole) - 1, 100).astype(int):
        path.write_bytes(whole[:length])
        try:
            read_picture(read_header(path))
        except InputError:
            refused += 1
    assert refused >= 95


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "bmp", "avif"])
def test_corrupt_files_never_raise_anything_else(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[MAKE] = "Maker"
    options = {} if kind == "bmp" else {"exif": exif, "icc_profile": SRGB}
    whole = save(image("RGB"), tmp_path / f"whole.{kind}", **options).read_bytes()
    rng, path = np.random.default_rng(1), tmp_path / f"bad.{kind}"
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 8)):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            header = read_header(path)
            check_output_size(header, tmp_path / "out.png", header.width, header.height, 1)
            read_picture(header)
        except InputError:
            pass


@pytest.mark.parametrize("side", [10_000, 30_000, 2**31 - 1])
@pytest.mark.usefixtures("no_decoding")
def test_a_huge_header_is_refused_undecoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(png(chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND")))
    with pytest.raises(InputError, match=r"bomb\.png: .*(megapixels|pixels)"):
        check_output_size(read_header(path), tmp_path / "out.png", side * 8, side * 8, 268)


def test_the_default_limit_allows_2048_by_8(tmp_path: Path) -> None:
    header = read_header(save(image("RGB"), tmp_path / "in.png"))
    check_output_size(header, tmp_path / "out.png", 16384, 16384, 268)
    with pytest.raises(InputError, match="269 megapixels; the limit is 268"):
        check_output_size(header, tmp_path / "out.png", 16384, 16420, 268)


@pytest.mark.parametrize(("suffix", "limit"), [("webp", 16383), ("jpg", 65500)])
def test_side_limits_of_formats_are_known_beforehand(tmp_path: Path, suffix: str, limit: int) -> None:
    header = read_header(save(image("RGB"), tmp_path / "in.png"))
    target = tmp_path / f"out.{suffix}"
    check_output_size(header, target, limit, 1, 268)
    with pytest.raises(OutputError, match=f"its limit is {limit}"):
        check_output_size(header, target, 1, limit + 1, 268)
    Image.new("L", (limit, 1)).save(target)


def test_a_png_with_a_profile_of_megabytes_can_be_read_again(tmp_path: Path) -> None:
    profile = SRGB + bytes(2_000_000)
    source = read_picture(read_header(save(image("RGB"), tmp_path / "in.jpg", icc_profile=profile)))
    write_picture(source, [source.levels / np.float32(255)], WIDTH, HEIGHT, tmp_path / "out.png")
    assert read_picture(read_header(tmp_path / "out.png")).icc == profile


def test_a_text_bomb_is_an_input_error(tmp_path: Path) -> None:
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000)))
    whole = save(image("RGB"), tmp_path / "in.png").read_bytes()
    (tmp_path / "in.png").write_bytes(whole[:33] + text + whole[33:])
    with pytest.raises(InputError, match="damaged"):
        read_picture(read_header(tmp_path / "in.png"))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a.webp", "an animated WEBP"),
        ("a.png", "an animated PNG"),
        ("a.tif", "a TIFF with several pages"),
        ("a.gif", "an animated GIF"),
        ("a.avif", "an animated AVIF"),
    ],
)
def test_animations_are_refused_as_what_they_are(tmp_path: Path, name: str, what: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=what):
        read_header(tmp_path / name)


def test_the_first_picture_of_a_phone_jpeg_is_used(tmp_path: Path) -> None:
    first, second = image("RGB"), Image.new("RGB", (3, 3))
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    header = read_header(tmp_path / "phone.jpg")
    assert (header.format, header.width, header.height) == ("JPEG", WIDTH, HEIGHT)
    assert read_picture(header).notes == ("only the first picture of the file is used",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"%PDF-1.7", "PDF"),
        (b"<?xml version='1.0'?><svg/>", "SVG"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypavif", "header cannot be read"),
        (b"\xff\x0a\xfa", "JPEG XL"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"\x89PNG\r\n\x1a\n", "header cannot be read"),
        (b"II*\0\x08\0\0\0", "a TIFF that is damaged, or whose pixels are of a kind that is not supported"),
        (b"hello world", "begins with b'hello wo'"),
    ],
)
def test_content_decides_and_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "picture.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"picture\.png: .*{said}"):
        read_header(tmp_path / "picture.png")


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder"):
        read_header(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read_header(tmp_path / "missing.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(InputError, match="not a plain file"):
            read_header(tmp_path / "pipe.png")


def test_a_file_that_changes_in_between_is_noticed(tmp_path: Path) -> None:
    header = read_header(save(image("RGB"), tmp_path / "in.png"))
    save(Image.new("RGB", (50, 50)), tmp_path / "in.png")
    with pytest.raises(InputError, match="changed"):
        read_picture(header)


@pytest.mark.parametrize("name", ["out.gif", "out", "out.png.bak"])
def test_unknown_suffixes_cannot_be_written(name: str) -> None:
    with pytest.raises(UsageError, match=r"\.png, \.jpg"):
        output_format(Path(name))


def test_one_pixel(tmp_path: Path) -> None:
    result, _ = copy_through(
        save(Image.new("RGB", (1, 1), (1, 2, 3)), tmp_path / "in.png"), tmp_path / "o.png"
    )
    assert result.getpixel((0, 0)) == (1, 2, 3)


def test_an_encoder_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(image("RGB"), tmp_path / "in.png")
    target = tmp_path / "out.png"
    target.write_bytes(b"the old one")

    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PngWriter, "finish", fail)
    with pytest.raises(OutputError, match="No space left"):
        copy_through(path, target)
    assert target.read_bytes() == b"the old one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.png", "out.png"]
