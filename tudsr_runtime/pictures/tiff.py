"""TIFF 6.0 written strip by strip, 8 or 16 bits; BigTIFF where 4 GiB might not do.

The directory stands before the strips: its length is known beforehand, its numbers are filled in at the end.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, TiffTags

from tudsr_runtime.pictures.metadata import SUB_DIRECTORIES
from tudsr_runtime.pictures.picture import Layout
from tudsr_runtime.pictures.pillow import is_pillows

CLASSIC_LIMIT = 4_000_000_000
"""Uncompressed bytes from which on the file becomes a BigTIFF; compression may fail to reduce it."""
STRIP = 1 << 18
"""Bytes of an uncompressed strip, about."""
LONG8 = 16
DEFLATE, NO_COMPRESSION = 8, 1
HORIZONTAL = 2
"""The predictor that stores differences of neighbours."""
BLACK_IS_ZERO, RGB = 1, 2
UNASSOCIATED = 2
"""Alpha that colour is not multiplied by."""
IPTC, INCH = 33723, 2
GEO_KINDS = {34735: TiffTags.SHORT}
"""Types of GeoTIFF's tags whose numbers are no doubles: the directory of its keys."""
T = TiffImagePlugin


class TiffWriter:
    """Writes a picture of `layout` to `file`, from top to bottom; level 0 stores, 9 compresses most.

    `file` must be seekable.
    """

    def __init__(
        self,
        file: BinaryIO,
        layout: Layout,
        *,
        icc: bytes | None = None,
        exif: bytes | None = None,
        xmp: bytes | None = None,
        dpi: tuple[float, float] | None = None,
        iptc: bytes | None = None,
        geo: Mapping[int, tuple[float, ...] | str] | None = None,
        level: int = 1,
    ) -> None:
        self._file = file
        self._layout = layout
        self._level = level
        self._big = layout.bytes > CLASSIC_LIMIT
        row_bytes = layout.bytes // layout.height
        self._strip_rows = min(layout.height, max(1, STRIP // row_bytes))
        self._rows = np.empty((0, layout.width, layout.channels), layout.dtype)
        self._sizes: list[int] = []
        self._directory = self._describe(icc, exif, xmp)
        if iptc:
            self._directory.tagtype[IPTC] = TiffTags.UNDEFINED
            self._directory[IPTC] = iptc
        if dpi:
            self._directory[T.X_RESOLUTION], self._directory[T.Y_RESOLUTION] = dpi
            self._directory[T.RESOLUTION_UNIT] = INCH
        for tag, value in (geo or {}).items():
            kind = TiffTags.ASCII if isinstance(value, str) else GEO_KINDS.get(tag, TiffTags.DOUBLE)
            self._directory.tagtype[tag] = kind
            self._directory[tag] = tuple(map(int, value)) if kind == TiffTags.SHORT else value
        strips = -(-layout.height // self._strip_rows)
        self._place(file, [0] * strips)

    def write(self, rows: NDArray[np.generic]) -> None:
        """Append (rows, width) or (rows, width, channels) levels."""
        rows = np.concatenate([self._rows, rows.reshape(len(rows), *self._rows.shape[1:])])
        whole = len(rows) // self._strip_rows * self._strip_rows
        for begin in range(0, whole, self._strip_rows):
            self._write_strip(rows[begin : begin + self._strip_rows])
        self._rows = rows[whole:]

    def finish(self) -> None:
        """Write the last strip, then where all of them are."""
        if len(self._rows):
            self._write_strip(self._rows)
        self._file.seek(0)
        self._place(self._file, self._sizes)

    def _write_strip(self, rows: NDArray[np.generic]) -> None:
        if self._level:
            differences = np.diff(rows, axis=1, prepend=np.zeros_like(rows[:, :1]))
            strip = zlib.compress(differences.astype(rows.dtype.newbyteorder("<")).data, self._level)
        else:
            strip = rows.astype(rows.dtype.newbyteorder("<")).tobytes()
        self._file.write(strip)
        self._sizes.append(len(strip))

    def _place(self, file: BinaryIO, sizes: list[int]) -> None:
        """Header and directory for strips of these sizes, which follow one another right behind."""
        kind = LONG8 if self._big else TiffTags.LONG
        # Pillow adds the end of the directory to these.
        offsets = np.cumsum([0, *sizes[:-1]], dtype=np.int64).tolist()
        for tag, values in ((T.STRIPOFFSETS, offsets), (T.STRIPBYTECOUNTS, sizes)):
            self._directory[tag] = tuple(values)
            self._directory.tagtype[tag] = kind
        header = self._header()
        file.write(header + self._directory.tobytes(len(header)))

    def _header(self) -> bytes:
        return (
            struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if self._big else struct.pack("<2sHI", b"II", 42, 8)
        )

    def _describe(
        self, icc: bytes | None, exif: bytes | None, xmp: bytes | None
    ) -> TiffImagePlugin.ImageFileDirectory_v2:
        layout = self._layout
        directory = T.ImageFileDirectory_v2(self._header())
        directory.reset()
        if exif:
            _add_exif(directory, exif)
        directory[T.IMAGEWIDTH], directory[T.IMAGELENGTH] = layout.width, layout.height
        directory[T.BITSPERSAMPLE] = (8 * layout.dtype.itemsize,) * layout.channels
        directory[T.COMPRESSION] = DEFLATE if self._level else NO_COMPRESSION
        directory[T.PHOTOMETRIC_INTERPRETATION] = BLACK_IS_ZERO if layout.grey else RGB
        directory[T.SAMPLESPERPIXEL] = layout.channels
        directory[T.ROWSPERSTRIP] = self._strip_rows
        directory[T.PLANAR_CONFIGURATION] = 1
        if self._level:
            directory[T.PREDICTOR] = HORIZONTAL
        if layout.alpha:
            directory[T.EXTRASAMPLES] = UNASSOCIATED
        for tag, block in ((T.ICCPROFILE, icc), (T.XMP, xmp)):
            if block:
                directory.tagtype[tag] = TiffTags.UNDEFINED if tag == T.ICCPROFILE else TiffTags.BYTE
                directory[tag] = block
        return directory


def _add_exif(directory: TiffImagePlugin.ImageFileDirectory_v2, block: bytes) -> None:
    """The entries of an EXIF block, with the directories below it, except those that cannot be written."""
    exif = Image.Exif()
    exif.load(block)
    for tag, value in exif.items():
        entry = T.ImageFileDirectory_v2(directory._get_ifh())
        entry.reset()
        try:
            entry[tag] = exif.get_ifd(tag) if tag in SUB_DIRECTORIES else value
            entry.tobytes()
        except Exception as error:
            if not is_pillows(error):
                raise
            continue
        directory[tag] = entry[tag]
