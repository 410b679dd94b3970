"""Small PNGs of pictures that browsers do not show, for the page: of a result, made while it is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tudsr_runtime.pictures.formats import FORMAT_OF_SUFFIX
from tudsr_runtime.pictures.picture import LUMA, Picture
from tudsr_runtime.planes import FloatArray, to_levels, white
from tudsr_serve.jobs import Job, Side

LONGEST = 2048
"""Px of the longer side, at most; the page draws a whole picture from no more."""

NOT_SHOWN = ("TIFF",)
"""Formats of files that browsers do not show."""

ROWS = 256
"""Rows of a picture that are floats at a time."""


class Reduced:
    """Reduces bands as they pass to the means of blocks of k x k px, with the least k that `longest` allows.

    Args:
        lines, length: how many rows (or columns) come in all, and px of each.
    """

    def __init__(self, lines: int, length: int, longest: int = LONGEST) -> None:
        self._k = max(1, -(-max(lines, length) // longest))
        self._starts = np.arange(0, length, self._k)
        self._sums = np.zeros((-(-lines // self._k), len(self._starts), 3), np.float32)
        self._counts = np.zeros(len(self._sums), np.float32)
        self._lines, self._length = 0, length

    def passing(self, bands: Iterable[FloatArray]) -> Iterator[FloatArray]:
        """The bands (lines, length, 3) as they come."""
        for band in bands:
            self.add(band)
            yield band

    def add(self, band: FloatArray) -> None:
        """Count one band."""
        if not len(band):
            return
        blocks = (self._lines + np.arange(len(band))) // self._k
        firsts = np.flatnonzero(np.diff(blocks, prepend=-1))
        across = np.add.reduceat(band, self._starts, axis=1)
        self._sums[blocks[firsts]] += np.add.reduceat(across, firsts, axis=0)
        self._counts[blocks[firsts]] += np.diff(firsts, append=len(band))
        self._lines += len(band)

    def levels(self) -> NDArray[np.uint8]:
        """The reduced picture, uint8 (h, w, 3)."""
        widths = np.diff(self._starts, append=self._length)
        means = self._sums / (self._counts[:, None] * widths)[..., None]
        return to_levels(means, np.dtype(np.uint8)).astype(np.uint8)


class Previews:
    """The previews of one job, of its result and its picture, where browsers do not show the format."""

    def __init__(self, job: Job, picture: Picture) -> None:
        self._job, self._picture = job, picture
        formats = job.planned.header.format, FORMAT_OF_SUFFIX[job.result.suffix.lower()]
        self._of_source, self._of_result = (job.previews and kind in NOT_SHOWN for kind in formats)
        self._reduced: Reduced | None = None

    def passing(
        self, bands: Iterable[FloatArray], size: tuple[int, int], by_columns: bool
    ) -> Iterable[FloatArray]:
        """The bands of a result of `size` (width, height), looked at as they pass."""
        if not self._of_result:
            return bands
        self._reduced = Reduced(*(size if by_columns else size[::-1]))
        return self._reduced.passing(bands)

    def write(self, by_columns: bool) -> tuple[str, ...]:
        """Write them to their files; a note if the system refuses."""
        try:
            if self._reduced is not None:
                levels = self._reduced.levels()
                self._save(levels.swapaxes(0, 1) if by_columns else levels, "after")
            if self._of_source:
                self._save(_small(self._picture), "before")
        except OSError as error:
            return (f"a preview could not be written: {error.strerror or 'the disk refused'}",)
        return ()

    def _save(self, levels: NDArray[np.uint8], side: Side) -> None:
        # A profile of grey does not fit colour.
        grey = self._picture.grey
        shown = np.rint(levels @ LUMA).astype(np.uint8) if grey else levels
        image = Image.fromarray(np.ascontiguousarray(shown))
        image.save(self._job.preview(side), icc_profile=self._picture.icc, compress_level=1)


def _small(picture: Picture) -> NDArray[np.uint8]:
    """The colours of a picture, reduced: uint8 (h, w, 3)."""
    reduced = Reduced(picture.height, picture.width)
    for begin in range(0, picture.height, ROWS):
        levels = picture.levels[begin : begin + ROWS].astype(np.float32)
        levels /= white(picture.levels.dtype)
        reduced.add(levels if levels.ndim == 3 else levels[..., None].repeat(3, axis=2))
    return reduced.levels()
