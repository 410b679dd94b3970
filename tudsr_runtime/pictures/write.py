"""Writing pictures: whole files or none, within what each format holds.

PNG and TIFF are written as the rows come. The others are encoded by Pillow, which needs all of the picture:
up to 4 bytes per pixel, and what the encoder itself takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.errors import InputError, MemoryExhausted, OutputError, UsageError
from tudsr_runtime.pictures.fitting import fitting_blocks
from tudsr_runtime.pictures.formats import FORMAT_OF_SUFFIX, FORMATS
from tudsr_runtime.pictures.picture import Layout, Picture, collected, enlarged
from tudsr_runtime.pictures.pillow import is_pillows
from tudsr_runtime.pictures.png import PngWriter
from tudsr_runtime.pictures.tiff import TiffWriter

ROW_WRITERS: dict[str, Callable[..., Writer]] = {"PNG": PngWriter, "TIFF": TiffWriter}
"""Formats that are written as the rows come; Pillow encodes the others when it has all of them."""

ROWS = 64
"""Rows that a writer gets at a time of a picture that is there."""

PILLOW_NAMES = {"icc": "icc_profile", "iptc": "extra"}
"""Where Pillow calls a block otherwise; JPEG segments of no kind that it knows are `extra`."""


@dataclass(frozen=True)
class Encoding:
    """`quality` 1 to 100 of JPEG, WebP and AVIF; `compression` 0 (none) to 9 (slow) of PNG and TIFF."""

    quality: int = 95
    compression: int = 1


class Writer(Protocol):
    """A file that grows by bands of rows."""

    def write(self, rows: NDArray[np.generic]) -> None:
        """Append (rows, width) or (rows, width, channels) levels."""

    def finish(self) -> None:
        """Complete the file."""


def output_format(path: Path) -> str:
    """The format that the suffix of an output file stands for. Raises UsageError for any other suffix."""
    try:
        return FORMAT_OF_SUFFIX[path.suffix.lower()]
    except KeyError:
        known = ", ".join(FORMAT_OF_SUFFIX)
        raise UsageError(
            f"{path}: cannot write {path.suffix or 'a file without suffix'}; tudsr writes {known}",
            hint=f"-o {path.with_suffix('.png')}, or mkdir {path} if a folder is meant",
        ) from None


def held_bytes(target: Path, width: int, height: int) -> int:
    """Bytes of the result in memory until it is encoded, without the encoder's own; 0 if rows are written."""
    return 0 if output_format(target) in ROW_WRITERS else 4 * width * height


def check_format_limits(target: Path, width: int, height: int) -> None:
    """Raise OutputError if the format of `target` is too small for the picture; the hint names another."""
    kind = output_format(target)
    holds = FORMATS[kind]
    if max(width, height) > holds.side:
        limit = f"{holds.side} pixels a side"
    elif width * height > holds.area:
        limit = f"{holds.area // 1_000_000} megapixels"
    else:
        return
    raise OutputError(
        f"{target}: cannot write {width} x {height} as {kind}, its limit is {limit}",
        hint=f"-o {target.with_suffix('.png').name}",
    )


def check_transparency(picture: Picture, target: Path) -> None:
    """Refuse to lose transparency: UsageError if a pixel is not opaque and the format knows no alpha."""
    kind = output_format(target)
    if not FORMATS[kind].alpha and picture.transparent:
        raise UsageError(
            f"{target}: {kind} cannot hold the transparency of this picture",
            hint=f"-o {target.with_suffix('.png')}",
        )


def fitting_layout(picture: Picture, width: int, height: int, target: Path) -> Layout:
    """The layout of the result: grey, alpha and depth as far as the format of `target` holds them."""
    holds = FORMATS[output_format(target)]
    return Layout(
        width,
        height,
        grey=picture.grey and holds.grey,
        alpha=picture.alpha is not None and holds.alpha,
        dtype=np.dtype(np.uint16 if picture.sixteen_bit and holds.sixteen_bit else np.uint8),
    )


def write_picture(
    picture: Picture,
    bands: Iterable[NDArray[np.float32]],
    width: int,
    height: int,
    target: Path,
    encoding: Encoding = Encoding(),
    replace: bool = True,
    by_columns: bool = False,
) -> tuple[str, ...]:
    """Write the rows of an enlarged picture; the file appears whole or not at all.

    Args:
        picture: what was enlarged; says what the result is like and brings profile, EXIF and XMP.
        bands: float32 (rows, width, 3) in [0, 1], from top to bottom, `height` rows in all.
        width, height: of the result in px.
        target: its suffix says which format.
        encoding: how the format is to compress.
        replace: whether a `target` that exists is replaced; else it is left alone.
        by_columns: whether the bands are (columns, height, 3), from left to right.

    Returns:
        Notes on what the format cannot hold.

    Raises:
        OutputError: the system refused.
        InputError: the encoder refused.
        UsageError: `target` exists and is not to be replaced.
        MemoryExhausted: the encoded picture does not fit into memory.
    """
    kind, layout = output_format(target), fitting_layout(picture, width, height, target)
    blocks, notes = fitting_blocks(picture, layout, kind)
    try:
        with atomic_write(target, replace) as file:
            writer = _open_writer(file, kind, layout, blocks, encoding, by_columns)
            lines = enlarged(picture, bands, layout, by_columns)
            if by_columns and not isinstance(writer, PillowWriter):
                lines = _rows_of(collected(lines, layout, by_columns))
            for band in lines:
                writer.write(band)
            writer.finish()
    except MemoryError as error:
        raise MemoryExhausted(f"{target}: out of memory while writing {width} x {height}") from error
    return tuple(notes)


def _rows_of(levels: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    return (levels[row : row + ROWS] for row in range(0, len(levels), ROWS))


class PillowWriter:
    """Collects a picture of `layout` and lets Pillow encode it, with `options` of its `save`.

    With `by_columns`, what is written is transposed.
    """

    def __init__(
        self, file: BinaryIO, layout: Layout, kind: str, options: dict[str, Any], by_columns: bool = False
    ) -> None:
        self._file = file
        self._kind = kind
        self._options = options
        self._image = Image.new(layout.mode, (layout.width, layout.height))
        self._by_columns = by_columns
        self._lines = 0

    def write(self, rows: NDArray[np.generic]) -> None:
        """Append (rows, width) or (rows, width, channels) levels."""
        place = (self._lines, 0) if self._by_columns else (0, self._lines)
        self._lines += len(rows)
        upright = np.ascontiguousarray(rows.swapaxes(0, 1)) if self._by_columns else rows
        self._image.paste(Image.fromarray(upright), place)

    def finish(self) -> None:
        """Encode. Raises InputError where Pillow cannot, for a reason that is not the system's."""
        try:
            self._image.save(self._file, format=self._kind, **self._options)
        except Exception as error:
            if not is_pillows(error) or getattr(error, "errno", None) is not None:
                raise
            reason = str(error) or type(error).__name__
            raise InputError(f"the picture cannot be encoded as {self._kind} ({reason})") from error


def _open_writer(
    file: BinaryIO,
    kind: str,
    layout: Layout,
    blocks: dict[str, Any],
    encoding: Encoding,
    by_columns: bool,
) -> Writer:
    if kind in ROW_WRITERS:
        return ROW_WRITERS[kind](file, layout, **blocks, level=encoding.compression)
    options = {PILLOW_NAMES.get(name, name): block for name, block in blocks.items()}
    options = {**FORMATS[kind].save, "quality": encoding.quality, **options}
    return PillowWriter(file, layout, kind, options, by_columns)
