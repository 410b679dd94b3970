"""The parts that a picture file is made of, by name, and never a pixel: what Pillow does not show of a file.

Every reader here takes any bytes and raises nothing: what is damaged ends the list. Each is linear in the
size of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

ContainerPart: TypeAlias = tuple[bytes, bytes]
"""The name of a chunk, segment or box, and its content."""

MAX_PARTS = 100_000
MAX_HEAD = 64 << 20
"""Bytes of a PNG that are looked at before its pixels."""
SOS, EOI, COMMENT = 0xDA, 0xD9, 0xFE
BARE = (0x01, *range(0xD0, 0xD9))
"""JPEG markers without a length."""
JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
PIXELS = (b"IDAT", b"fdAT", b"VP8 ", b"VP8L", b"ALPH", b"ANMF", b"mdat")
"""Parts whose content nobody asks for: they come empty."""


@dataclass(frozen=True)
class Parts:
    """The parts of one file, in its order; `rest` is what stands behind the end of the picture."""

    parts: tuple[ContainerPart, ...] = ()
    rest: bytes = b""

    def named(self, name: bytes) -> list[bytes]:
        """The contents of all parts of that name."""
        return [body for found, body in self.parts if found == name]


@dataclass(frozen=True)
class Items:
    """The items of an AVIF: their kinds, and the properties (name, content) of the main one and of all."""

    kinds: tuple[bytes, ...] = ()
    primary: tuple[ContainerPart, ...] = ()
    properties: tuple[ContainerPart, ...] = field(default=(), repr=False)


def png_parts(data: bytes) -> Parts:
    """The chunks of a PNG."""
    parts: list[ContainerPart] = []
    at = 8
    while at + 12 <= len(data) and len(parts) < MAX_PARTS:
        length, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        parts.append((name, b"" if name in PIXELS else data[at + 8 : at + 8 + length]))
        at += 12 + length
        if name == b"IEND":
            return Parts(tuple(parts), data[at:])
    return Parts(tuple(parts))


def png_head(path: Path) -> bytes:
    """A PNG as far as its pixels, where all that concerns their colours stands. Raises OSError."""
    with open(path, "rb") as file:
        data = bytearray(file.read(8))
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND") and len(data) < MAX_HEAD:
            data += head + file.read(min(int.from_bytes(head[:4]), MAX_HEAD) + 4)
    return bytes(data)


def riff_parts(data: bytes) -> Parts:
    """The chunks of a WebP."""
    parts: list[ContainerPart] = []
    at, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= end and len(parts) < MAX_PARTS:
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append((name, b"" if name in PIXELS else data[at + 8 : min(end, at + 8 + length)]))
        at += 8 + length + length % 2
    return Parts(tuple(parts), data[end:])


def jpeg_parts(data: bytes) -> Parts:
    """The segments of a JPEG up to its end: APP0 to APP15 and COM by these names, the others left out."""
    parts: list[ContainerPart] = []
    at = 2
    while len(parts) < MAX_PARTS and (match := JPEG_MARKER.search(data, at)):
        marker, at = match[1][0], match.end()
        if marker == EOI:
            return Parts(tuple(parts), data[at:])
        if marker in BARE:
            continue
        length = max(2, int.from_bytes(data[at : at + 2]))
        if 0xE0 <= marker <= 0xEF or marker == COMMENT:
            name = b"COM" if marker == COMMENT else b"APP%d" % (marker - 0xE0)
            parts.append((name, data[at + 2 : at + length]))
        at += length
    return Parts(tuple(parts))


def jpeg_scans(data: bytes) -> int:
    """How many scans a decoder of the JPEG will see: those before its end."""
    scans, at = 0, 2
    while match := JPEG_MARKER.search(data, at):
        marker, at = match[1][0], match.end()
        if marker == EOI:
            break
        scans += marker == SOS
        if marker not in BARE:
            at += max(2, int.from_bytes(data[at : at + 2]))
    return scans


def boxes(data: bytes) -> Iterator[ContainerPart]:
    """The boxes of ISO base media (14496-12, 4.2) that stand side by side in `data`."""
    at = 0
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return
        length, name, head = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8], 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16]), 16
        if length == 0:
            length = len(data) - at
        if length < head:
            return
        yield name, b"" if name in PIXELS else data[at + head : at + length]
        at += length


def avif_items(data: bytes) -> Items:
    """What the `meta` box of an AVIF says of its items (ISO 23008-12; 14496-12, 8.11)."""
    meta = dict(boxes(next((body for name, body in boxes(data) if name == b"meta"), b"")[4:]))
    wide = meta.get(b"iinf", b"")[:1] != b"\0"
    entries = [body for name, body in boxes(meta.get(b"iinf", b"")[8 if wide else 6 :]) if name == b"infe"]
    # Version 2 has an item_ID of 2 bytes, version 3 of 4; a protection index of 2 follows.
    kinds = [body[10:14] if body[:1] == b"\3" else body[8:12] for body in entries]
    iprp = dict(boxes(meta.get(b"iprp", b"")))
    properties = tuple(boxes(iprp.get(b"ipco", b"")))
    pitm = meta.get(b"pitm", b"")
    main = int.from_bytes(pitm[4:8] if pitm[:1] == b"\1" else pitm[4:6])
    indices = _associations(iprp.get(b"ipma", b""), main)
    primary = tuple(properties[index - 1] for index in indices if 1 <= index <= len(properties))
    return Items(tuple(kinds), primary, properties)


def _associations(ipma: bytes, item: int) -> list[int]:
    """The indices, from 1, of the properties of that item."""
    size = 4 if ipma[:1] == b"\1" else 2
    width = 2 if ipma[3:4] and ipma[3] & 1 else 1
    at = 8
    while at + size < len(ipma):
        found, count = int.from_bytes(ipma[at : at + size]), ipma[at + size]
        at += size + 1
        if found == item:
            mask = 0x7FFF if width == 2 else 0x7F
            ends = range(at, at + width * count, width)
            return [int.from_bytes(ipma[end : end + width]) & mask for end in ends]
        at += width * count
    return []
