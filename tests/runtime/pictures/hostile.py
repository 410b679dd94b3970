"""Pictures of every format and mode, with metadata; and ways to damage files so that readers get far.

Plain bit flips mostly fail at the first checksum. So a PNG gets new ones, and the parts of each format
(chunks, segments, tags) are changed as wholes: dropped, doubled, renamed, of another type, length or content.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

WIDTH, HEIGHT = 11, 6
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d" tiff:ImageWidth="11"/></x:xmpmeta>'
MAKE, ORIENTATION, EXIF_IFD, GPS_IFD, ISO, XMP_TAG = 271, 274, 34665, 34853, 34855, 700

Damage = Callable[[bytes, np.random.Generator], bytes]


def picture(mode: str) -> Image.Image:
    """Noise in a mode of Pillow, smooth enough for any codec."""
    levels = np.random.default_rng(len(mode)).integers(1, 255, (HEIGHT, WIDTH, 4), np.uint8)
    if mode in ("I;16", "F"):
        return Image.fromarray(levels[..., 0].astype(np.uint16 if mode == "I;16" else np.float32) * 257)
    if mode == "LA":
        return Image.merge("LA", Image.fromarray(levels).split()[:2])
    if mode == "P":
        return Image.fromarray(levels[..., :3]).quantize(16)
    if mode in ("RGBA", "CMYK"):
        return Image.frombytes(mode, (WIDTH, HEIGHT), levels.tobytes())
    return Image.fromarray(levels[..., :3]).convert("RGB").convert(mode)


def exif(orientation: int | None = None) -> Image.Exif:
    """EXIF with directories below it."""
    made = Image.Exif()
    made[MAKE] = "Maker"
    if orientation:
        made[ORIENTATION] = orientation
    made.get_ifd(EXIF_IFD).update({ISO: 400, 40962: WIDTH})
    made.get_ifd(GPS_IFD)[1] = "N"
    return made


@dataclass(frozen=True)
class Seed:
    """A whole file, the EXIF orientation that turns it, and its very pixels if the format loses none."""

    data: bytes
    turn: int = 1
    pixels: Image.Image | None = None


def seeds() -> dict[str, Seed]:
    """By name, "FORMAT what"."""
    made: dict[str, Seed] = {}

    def add(kind: str, what: str, image: Image.Image, turn: int = 1, **options: object) -> None:
        file = io.BytesIO()
        image.save(file, format=kind, **options)
        lossless = kind in ("PNG", "TIFF", "BMP") or options.get("lossless")
        exact = lossless and options.get("compression") != "jpeg" and "transparent" not in what
        made[f"{kind} {what}"] = Seed(file.getvalue(), turn, image if exact else None)

    for mode in ("1", "L", "LA", "P", "I;16", "RGB", "RGBA"):
        add("PNG", mode, picture(mode), icc_profile=SRGB, exif=exif(6).tobytes(), turn=6)
    add("PNG", "P transparent", picture("P"), transparency=3, dpi=(72, 144))
    add("PNG", "plain", picture("RGB"))
    plain = made["PNG plain"]
    made["PNG xmp"] = Seed(with_chunk(plain.data, b"iTXt", PNG_XMP + XMP % 6, 1), 6, plain.pixels)
    made["PNG late xmp"] = Seed(with_chunk(plain.data, b"iTXt", PNG_XMP + XMP % 8, -1), 8, plain.pixels)
    made["PNG RGB 16"] = Seed(deep_png())
    for mode in ("L", "RGB", "CMYK"):
        blocks = {"icc_profile": SRGB} if mode == "RGB" else {}
        add("JPEG", mode, picture(mode), exif=exif(3), xmp=XMP % 3, comment=b"c", turn=3, **blocks)
    add("JPEG", "xmp", picture("RGB"), xmp=XMP % 7, turn=7, progressive=True)
    for mode in ("RGB", "RGBA"):
        for lossless in (False, True):
            what = f"{mode} {'lossless' if lossless else 'lossy'}"
            blocks = {"icc_profile": SRGB, "exif": exif(5), "xmp": XMP % 1}
            add("WEBP", what, picture(mode), lossless=lossless, turn=5, **blocks)
        add("AVIF", mode, picture(mode), icc_profile=SRGB, exif=exif(6), xmp=XMP % 1, turn=6)
    add("WEBP", "xmp", picture("RGB"), xmp=XMP % 6, turn=6)
    add_tiffs(add)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        add("BMP", mode, picture(mode))
    return made


def add_tiffs(add: Callable[..., None]) -> None:
    """TIFF in all modes, small and big, turned by its tag or by XMP alone."""
    for mode, big in itertools.product(("1", "L", "LA", "P", "I;16", "RGB", "RGBA", "CMYK"), (False, True)):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags.update({MAKE: "Maker", ORIENTATION: 6, XMP_TAG: XMP % 6, 33550: (1.0, 1.0, 0.0)})
        what = f"{mode}{' big' if big else ''}"
        packed = {"1": "group4", "L": "raw", "LA": "raw"}.get(mode, "tiff_deflate")
        packing = "raw" if big else packed  # Pillow has libtiff write no BigTIFF.
        add("TIFF", what, picture(mode), tiffinfo=tags, compression=packing, big_tiff=big, turn=6)
    for packing in ("raw", "tiff_lzw"):
        tags = {XMP_TAG: XMP % 8}
        add("TIFF", f"xmp {packing}", picture("RGB"), tiffinfo=tags, compression=packing, turn=8)
    add("TIFF", "icc", picture("RGB"), icc_profile=SRGB, dpi=(300, 300), exif=exif())
    add("TIFF", "jpeg", picture("RGB"), compression="jpeg")


PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"


def deep_png() -> bytes:
    """RGB in 16 bits."""
    rows = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH * 3)).astype(">u2")
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return join_png([(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")])


def with_chunk(data: bytes, kind: bytes, body: bytes, at: int) -> bytes:
    """A PNG with one more chunk."""
    chunks = list(png_chunks(data))
    chunks.insert(at % len(chunks), (kind, body))
    return join_png(chunks)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each."""
    at = 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += length + 12


def join_png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG with right checksums."""
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk of a WebP."""
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def join_riff(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A WebP."""
    parts = [kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for kind, body in chunks]
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_segments(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Marker and body of each segment; the last, from SOS on, holds the pixels."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4])
        yield data[at : at + 2], data[at + 4 : at + 2 + length]
        at += 2 + length
    yield b"", data[at:]


def join_jpeg(segments: list[tuple[bytes, bytes]]) -> bytes:
    """A JPEG."""
    parts = [
        marker + struct.pack(">H", min(len(body) + 2, 65535)) + body if marker else body
        for marker, body in segments
    ]
    return b"\xff\xd8" + b"".join(parts)


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight of them."""
    damaged = bytearray(data)
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        damaged[place] ^= 1 << rng.integers(0, 8)
    return bytes(damaged)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    """The end is missing, or a part in the middle."""
    begin, end = np.sort(rng.integers(0, len(data), 2))
    return data[:end] if rng.random() < 0.5 else data[:begin] + data[end:]


def edit_parts(parts: list[tuple[bytes, bytes]], rng: np.random.Generator) -> list[tuple[bytes, bytes]]:
    """Drop, double, move, rename, shorten, lengthen or overwrite one or two of the parts of a file."""
    parts = list(parts)
    for _ in range(rng.integers(1, 3)):
        at = int(rng.integers(0, len(parts)))
        kind, body = parts[at]
        other = parts[int(rng.integers(0, len(parts)))][0]
        odd = bytes(rng.integers(0, 256, rng.integers(0, 20), np.uint8))
        place = int(rng.integers(0, len(body) + 1))
        edits = [
            [],
            [(kind, body)] * 2,
            [(other, body)],
            [(kind, body[:place])],
            [(kind, body + odd)],
            [(kind, odd)],
            [(kind, body[:place] + odd + body[place + len(odd) :])],
            [(kind, flip_bits(body, rng) if body else odd)],
        ]
        parts[at : at + 1] = edits[int(rng.integers(0, len(edits)))]
        parts = parts or [(kind, body)]
    return parts


def edit_tags(data: bytes, rng: np.random.Generator) -> bytes:
    """Another number, type, count or value for one to three tags of the first directory of a TIFF."""
    order, big = "<" if data[:2] == b"II" else ">", data[2:4] in (b"+\0", b"\0+")
    at = struct.unpack_from(f"{order}Q" if big else f"{order}I", data, 8 if big else 4)[0]
    head, entry = (8, 20) if big else (2, 12)
    count = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, at)[0]
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = at + head + entry * int(rng.integers(0, count))
        tag, kind = struct.unpack_from(f"{order}HH", damaged, place)
        length, value = struct.unpack_from(f"{order}QQ" if big else f"{order}II", damaged, place + 4)
        choices = [
            (int(rng.choice([tag + 1, 274, 700, 34665, 34675, 320, 338, 339])), kind, length, value),
            (tag, int(rng.integers(0, 20)), length, value),
            (tag, int(rng.integers(1, 14)), 1, value),
            (tag, kind, int(rng.choice([0, 1, 2, 2**16, 2**31])), value),
            (tag, kind, length, int(rng.choice([0, 1, 2, 3, 7, 12, 2**16, 2**31, len(data)]))),
        ]
        fields = choices[int(rng.integers(0, len(choices)))]
        struct.pack_into(f"{order}HHQQ" if big else f"{order}HHII", damaged, place, *fields)
    return bytes(damaged)


def edit_of(kind: str) -> Damage | None:
    """The edit that knows the parts of a format, if there is one."""
    split_join = {
        "PNG": (png_chunks, join_png),
        "WEBP": (riff_chunks, join_riff),
        "JPEG": (jpeg_segments, join_jpeg),
    }
    if kind == "TIFF":
        return edit_tags
    if kind not in split_join:
        return None
    split, join = split_join[kind]
    return lambda data, rng: join(edit_parts(list(split(data)), rng))


def damage(kind: str, data: bytes, rng: np.random.Generator) -> bytes:
    """The file with one kind of damage, most often one of the format's own."""
    own = edit_of(kind)
    choices = [flip_bits, cut, *([own] * 4 if own else [])]
    return choices[int(rng.integers(0, len(choices)))](data, rng)


def white(kind: str) -> bytes:
    """A white picture of that format."""
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), "white").save(file, kind)
    return file.getvalue()


def announced(data: bytes, width: int, height: int) -> bytes:
    """A PNG whose header says another size than its pixels have."""
    header = data[12:16] + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def group_4(width: int, height: int) -> bytes:
    """A TIFF of one bit, all white: a bit for each row."""
    file = io.BytesIO()
    Image.new("1", (width, height), 1).save(file, "TIFF", compression="group4")
    return file.getvalue()


def scans(count: int, progressive: bool = True) -> bytes:
    """A JPEG with so many further scans, copies of its first: a decoder goes over all pixels for each."""
    file = io.BytesIO()
    Image.new("L" if not progressive else "RGB", (WIDTH, HEIGHT), 90).save(
        file, "JPEG", progressive=progressive
    )
    data = file.getvalue()
    begin = data.index(b"\xff\xda")
    length = int.from_bytes(data[begin + 2 : begin + 4])
    end = next(
        at
        for at in range(begin + 2 + length, len(data))
        if data[at] == 0xFF and data[at + 1] not in (0, 0xFF)
    )
    return data[:end] + data[begin:end] * count + data[end:]
