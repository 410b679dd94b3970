"""16 bits per channel in and out, against files built or read by something other than Pillow."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tudsr_runtime.errors import InputError
from tudsr_runtime.pictures.picture import Picture
from tudsr_runtime.pictures.read import read_header, read_picture
from tudsr_runtime.pictures.write import Encoding, write_picture

tifffile = pytest.importorskip("tifffile", reason="reading and writing reference TIFFs needs tifffile")

HEIGHT, WIDTH = 9, 7
COLOUR_TYPES = {1: 0, 3: 2, 2: 4, 4: 6}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 65536, shape, np.uint16)


def channels(picture: Picture) -> np.ndarray:
    return picture.levels if picture.alpha is None else np.dstack([picture.levels, picture.alpha])


def read(path: Path) -> Picture:
    return read_picture(read_header(path))


def png(path: Path, pixels: np.ndarray, *chunks: tuple[bytes, bytes]) -> Path:
    """A 16-bit PNG whose rows have the filters None and Sub in turn."""
    height, width, count = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    data = b""
    for y, row in enumerate(rows):
        left = np.concatenate([np.zeros(2 * count, np.uint8), row[: -2 * count]])
        data += bytes([y % 2]) + (row - left if y % 2 else row).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[count], 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in parts
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def reference_png(path: Path) -> np.ndarray:
    """(h, w, c) levels of a PNG with filter Average alone, decoded byte by byte."""
    content, at, data, header = path.read_bytes(), 8, b"", b""
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack_from(">I", content, at + 8 + length)[0]
        data += body if kind == b"IDAT" else b""
        header = body if kind == b"IHDR" else header
        at += 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", header[:10])
    count = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    pixel = count * depth // 8
    raw, above, rows = zlib.decompress(data), bytes(width * pixel), []
    for y in range(height):
        line = bytearray(raw[y * (width * pixel + 1) : (y + 1) * (width * pixel + 1)])
        assert line.pop(0) == 3
        for x in range(len(line)):
            line[x] = (line[x] + ((line[x - pixel] if x >= pixel else 0) + above[x]) // 2) % 256
        above = bytes(line)
        rows.append(np.frombuffer(above, ">u2" if depth == 16 else np.uint8).reshape(width, count))
    return np.stack(rows)


def write(picture: Picture, path: Path, **options: int) -> tuple[str, ...]:
    """Write the picture as it is, in uneven bands."""
    top = np.float32(np.iinfo(picture.levels.dtype).max)
    rgb = np.atleast_3d(picture.levels).repeat(3 if picture.grey else 1, axis=2) / top
    bands = [rgb[:1], rgb[1:1], rgb[1:6], rgb[6:]]
    return write_picture(picture, bands, picture.width, picture.height, path, Encoding(**options))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_png_is_read_to_the_last_bit(tmp_path: Path, count: int) -> None:
    pixels = noise(HEIGHT, WIDTH, count)
    picture = read(png(tmp_path / "in.png", pixels))
    assert picture.sixteen_bit
    assert picture.notes == ()
    assert np.array_equal(channels(picture), pixels[..., 0] if count == 1 else pixels)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [0, 1, 6])
def test_png_is_written_to_the_last_bit(tmp_path: Path, count: int, dtype: type, compression: int) -> None:
    pixels = (noise(HEIGHT, WIDTH, count) % np.iinfo(dtype).max + 1).astype(dtype)
    colour = pixels[..., 0] if count <= 2 else pixels[..., :3]
    picture = Picture(colour, pixels[..., -1] if count in (2, 4) else None)
    assert write(picture, tmp_path / "out.png", compression=compression) == ()
    assert np.array_equal(reference_png(tmp_path / "out.png"), pixels)
    again = read(tmp_path / "out.png")
    assert again.levels.dtype == dtype
    assert np.array_equal(np.atleast_3d(channels(again)), pixels)


@pytest.mark.parametrize("count", [1, 3])
def test_one_transparent_colour_of_16_bits_becomes_alpha(tmp_path: Path, count: int) -> None:
    pixels = noise(HEIGHT, WIDTH, count)
    chunk = (b"tRNS", pixels[2, 3].astype(">u2").tobytes())
    picture = read(png(tmp_path / "in.png", pixels, chunk))
    assert picture.alpha is not None
    assert picture.alpha.dtype == np.uint16
    assert picture.alpha[2, 3] == 0
    assert (picture.alpha == 65535).sum() == HEIGHT * WIDTH - 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"compression": "zlib", "predictor": 2},
        {"compression": "zlib", "byteorder": ">"},
        {"compression": "zlib", "tile": (16, 16)},
    ],
    ids=str,
)
def test_tiff_is_read_to_the_last_bit(tmp_path: Path, options: dict[str, object]) -> None:
    # `metadata` would be a description of the shape, of which a note tells.
    pixels = noise(HEIGHT, WIDTH, 3)
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb", metadata=None, **options)
    picture = read(tmp_path / "in.tif")
    assert np.array_equal(picture.levels, pixels)
    assert picture.notes == ()


def test_tiff_alpha_multiplied_into_the_colour_is_taken_out(tmp_path: Path) -> None:
    plain = noise(HEIGHT, WIDTH, 4)
    plain[..., 3] |= 0x8000
    multiplied = plain.copy()
    multiplied[..., :3] = np.rint(plain[..., :3] * (plain[..., 3:] / 65535))
    tifffile.imwrite(tmp_path / "a.tif", plain, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(channels(read(tmp_path / "a.tif")), plain)
    tifffile.imwrite(tmp_path / "b.tif", multiplied, photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(channels(read(tmp_path / "b.tif")).astype(int) - plain).max() <= 1


def test_a_negative_of_16_bits_is_turned_round(tmp_path: Path) -> None:
    pixels = noise(HEIGHT, WIDTH)
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="miniswhite")
    assert np.array_equal(read(tmp_path / "in.tif").levels, 65535 - pixels)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_of_grey_with_alpha_is_read_to_the_last_bit(
    tmp_path: Path, byteorder: str, compression: str | None
) -> None:
    pixels = noise(HEIGHT, WIDTH, 2)
    options = {"photometric": "minisblack", "planarconfig": "contig", "byteorder": byteorder}
    tifffile.imwrite(
        tmp_path / "in.tif", pixels, extrasamples=["unassalpha"], compression=compression, **options
    )
    picture = read(tmp_path / "in.tif")
    assert picture.grey
    assert (channels(picture) == pixels).all()
    plain = np.dstack([noise(HEIGHT, WIDTH) // 4, np.full((HEIGHT, WIDTH), 32768)]).astype(np.uint16)
    multiplied = np.dstack([plain[..., 0] // 2, plain[..., 1]])
    tifffile.imwrite(
        tmp_path / "multiplied.tif",
        multiplied,
        extrasamples=["assocalpha"],
        compression=compression,
        **options,
    )
    assert np.abs(channels(read(tmp_path / "multiplied.tif")).astype(int) - plain).max() <= 2


def test_tiff_of_grey_and_alpha_stored_apart_is_refused(tmp_path: Path) -> None:
    planes = noise(2, HEIGHT, WIDTH)
    tifffile.imwrite(
        tmp_path / "in.tif",
        planes,
        photometric="minisblack",
        planarconfig="separate",
        extrasamples=["unassalpha"],
    )
    with pytest.raises(InputError):
        read(tmp_path / "in.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_channels_stored_apart_are_right_and_any_loss_is_said(
    tmp_path: Path, compression: str | None
) -> None:
    pixels = noise(HEIGHT, WIDTH, 3)
    planes = pixels.transpose(2, 0, 1)
    options = {"photometric": "rgb", "planarconfig": "separate", "compression": compression}
    tifffile.imwrite(tmp_path / "in.tif", planes, rowsperstrip=2, metadata=None, **options)
    picture = read(tmp_path / "in.tif")
    if compression is None:
        assert np.array_equal(picture.levels, pixels)
    else:
        assert np.array_equal(picture.levels, pixels >> 8)
        assert picture.notes == ("16-bit RGB is processed as 8-bit",)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("compression", "big"), [(0, False), (1, False), (1, True)])
def test_tiff_is_written_to_the_last_bit(
    tmp_path: Path, count: int, dtype: type, compression: int, big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tudsr_runtime.pictures.tiff.STRIP", 4 * WIDTH * count * np.dtype(dtype).itemsize)
    if big:
        monkeypatch.setattr("tudsr_runtime.pictures.tiff.CLASSIC_LIMIT", 10)
    pixels = (noise(HEIGHT, WIDTH, count) % np.iinfo(dtype).max + 1).astype(dtype)
    colour = pixels[..., 0] if count <= 2 else pixels[..., :3]
    picture = Picture(colour, pixels[..., -1] if count in (2, 4) else None, xmp=b"<x/>")
    assert write(picture, tmp_path / "out.tif", compression=compression) == ()
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_bigtiff == big
        assert len(file.pages[0].dataoffsets) == 3
        assert np.array_equal(np.atleast_3d(file.asarray()), pixels)
    if count != 2:  # Pillow reads no grey with alpha of 16 bits, and what it cannot read is refused.
        assert np.array_equal(np.atleast_3d(channels(read(tmp_path / "out.tif"))), pixels)


def test_16_bits_are_written_with_8_where_the_format_has_no_more_and_it_is_said(tmp_path: Path) -> None:
    picture = Picture(np.full((HEIGHT, WIDTH, 3), 128 * 257 + 100, np.uint16))
    for suffix, kind in (("jpg", "JPEG"), ("webp", "WEBP"), ("bmp", "BMP"), ("avif", "AVIF")):
        notes = write(picture, tmp_path / f"out.{suffix}")
        assert notes == (f"16 bits per channel are written with 8 bits in {kind}",)
        with Image.open(tmp_path / f"out.{suffix}") as written:
            assert np.abs(np.asarray(written.convert("RGB")).astype(int) - 128).max() <= 1
