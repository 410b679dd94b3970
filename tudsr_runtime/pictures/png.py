"""PNG written row by row (W3C PNG, third edition), 8 or 16 bits: the whole picture is never held.

Pillow encodes only whole pictures, and colour only with 8 bits.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tudsr_runtime.pictures.carried import METRE, Text
from tudsr_runtime.pictures.picture import Layout

COLOUR_TYPES = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}
AVERAGE = 3
"""The filter that subtracts the mean of the values to the left and above: on photographs the smallest."""
FASTEST = 1
"""The level that looks for runs only, which on filtered photographs costs least and loses nothing."""
IDAT_BYTES = 1 << 20
"""Bytes of an IDAT chunk, about."""


class PngWriter:
    """Writes a picture of `layout` to `file`, from top to bottom; level 0 stores, 9 compresses most."""

    def __init__(
        self,
        file: BinaryIO,
        layout: Layout,
        *,
        icc: bytes | None = None,
        exif: bytes | None = None,
        xmp: bytes | None = None,
        dpi: tuple[float, float] | None = None,
        texts: Sequence[Text] = (),
        srgb: bool = False,
        level: int = FASTEST,
    ) -> None:
        self._file = file
        self._layout = layout
        self._above = np.zeros(layout.width * layout.channels * layout.dtype.itemsize, np.uint8)
        strategy = zlib.Z_RLE if level == FASTEST else zlib.Z_FILTERED
        self._zip = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
        self._pending = bytearray()
        depth, kind = 8 * layout.dtype.itemsize, COLOUR_TYPES[layout.mode]
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", layout.width, layout.height, depth, kind, 0, 0, 0))
        if icc:
            self._chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
        elif srgb:
            self._chunk(b"sRGB", b"\0")
        if dpi:
            self._chunk(b"pHYs", struct.pack(">IIB", *(round(number / METRE) for number in dpi), 1))
        if exif:
            self._chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
        if xmp:
            self._chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
        for text in texts:
            self._chunk(*_text(text))

    def write(self, rows: NDArray[np.generic]) -> None:
        """Append (rows, width) or (rows, width, channels) levels."""
        octets = rows.astype(rows.dtype.newbyteorder(">"), copy=False).reshape(len(rows), -1).view(np.uint8)
        above = np.concatenate([self._above[None], octets[:-1]])
        self._above = octets[-1].copy()
        pixel = self._layout.channels * self._layout.dtype.itemsize
        left = np.zeros_like(octets)
        left[:, pixel:] = octets[:, :-pixel]
        filtered = np.empty((len(octets), octets.shape[1] + 1), np.uint8)
        filtered[:, 0] = AVERAGE
        # floor((left + above) / 2) without leaving 8 bits.
        np.subtract(octets, (left & above) + ((left ^ above) >> 1), out=filtered[:, 1:])
        self._pending += self._zip.compress(filtered.data)
        self._flush(IDAT_BYTES)

    def finish(self) -> None:
        """Write the end of the file."""
        self._pending += self._zip.flush()
        self._flush(1)
        self._chunk(b"IEND", b"")

    def _flush(self, least: int) -> None:
        if len(self._pending) >= least:
            self._chunk(b"IDAT", bytes(self._pending))
            self._pending.clear()

    def _chunk(self, kind: bytes, body: bytes) -> None:
        self._file.write(struct.pack(">I", len(body)) + kind)
        self._file.write(body)
        self._file.write(struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))))


def _text(text: Text) -> tuple[bytes, bytes]:
    """A text as a chunk: Latin-1 where it is that, as most readers know only this kind, else UTF-8."""
    key = text.key.encode("latin-1", "replace")[:79] or b"?"
    if not text.language and not text.translated:
        try:
            return b"tEXt", key + b"\0" + text.value.encode("latin-1")
        except UnicodeEncodeError:
            pass
    parts = (text.language.encode("ascii", "replace"), text.translated.encode(errors="replace"))
    return b"iTXt", key + b"\0\0\0" + b"\0".join((*parts, text.value.encode(errors="replace")))
