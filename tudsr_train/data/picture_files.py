"""Training pictures in files: which are used, in what order, and what becomes of those that are damaged.

A number stands for the same picture in every process and after every restart: numbers run through epochs,
and every epoch is a permutation of all pictures that depends on seed and epoch alone. A picture that cannot
be decoded is replaced by another one that is drawn from its number, and noted in a list.
"""

from __future__ import annotations

import concurrent.futures
import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tudsr_runtime.errors import TrainingError
from tudsr_runtime.files import make_folder

Pixels = NDArray[np.uint8]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
REPLACEMENTS_TRIED = 20
SURVEY_THREADS = 16  # waiting for a disk, not computing


class DataError(TrainingError):
    """Training data that cannot be used; keeps its one line on the way out of a worker process."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # a DataLoader hands a worker's error on as the text of its traceback, whose last line is ours
        if message.startswith("Caught DataError"):
            message = message.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(message, hint=hint)


@dataclass(frozen=True)
class Sample:
    """One HQ picture, and the LQ picture that goes with it where the data has one; uint8 (H, W, 3)."""

    epoch: int
    index: int
    high: Pixels
    low: Pixels | None = None


class PictureSource(Protocol):
    """Pictures by number, without end."""

    def __getitem__(self, number: int) -> Sample: ...


class EpochOrder:
    """(epoch, index) of a number: every epoch is its own permutation of `count` indices."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._indices = -1, np.empty(0, np.int64)

    def __call__(self, number: int) -> tuple[int, int]:
        epoch, position = divmod(number, self.count)
        if epoch != self._epoch:
            self._indices = np.random.default_rng([self.seed, epoch, 0x0D]).permutation(self.count)
            self._epoch = epoch
        return epoch, int(self._indices[position])


class Quarantine:
    """A text file with a line for every damaged picture, shared by all processes of a run."""

    def __init__(self, file: Path, total: int, allowed: float) -> None:
        self.file, self.total, self.allowed = file, total, allowed

    def add(self, name: str, reason: str) -> None:
        """Note a picture once. Raises DataError where more than the allowed share is damaged."""
        known = self._names()
        if name not in known:
            make_folder(self.file.parent)
            # one short write to a file opened for appending is not torn by another process
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(f"{name}\t{' '.join(reason.split())}\n")
            known.add(name)
        if len(known) > self.allowed * self.total:
            raise DataError(
                f"{len(known)} of {self.total} pictures are damaged, more than {self.allowed:.1%}; they are "
                f"listed in {self.file}: mend or remove them, and that list, or raise data.corrupt_allowed"
            )

    def _names(self) -> set[str]:
        if not self.file.is_file():
            return set()
        return {line.partition("\t")[0] for line in self.file.read_text(encoding="utf-8").splitlines()}


class PictureFiles:
    """Pictures of files, decoded when they are asked for."""

    def __init__(self, files: list[Path], seed: int, quarantine: Quarantine, keep_decoded: int = 0) -> None:
        self.files, self.seed, self.quarantine = files, seed, quarantine
        self.order = EpochOrder(len(files), seed)
        self.keep_decoded = keep_decoded
        """Bytes of decoded pictures that this process may hold on to."""

    def __getitem__(self, number: int) -> Sample:
        epoch, index = self.order(number)
        rng = np.random.default_rng([self.seed, epoch, index, 0xBAD])
        chosen = index
        for _ in range(REPLACEMENTS_TRIED):
            try:
                return self.read(epoch, index, chosen)
            except UnreadablePicture as error:
                self.quarantine.add(error.name, error.reason)
                chosen = int(rng.integers(len(self.files)))
        raise DataError(f"{REPLACEMENTS_TRIED} damaged pictures in a row, the last one {self.files[chosen]}")

    def read(self, epoch: int, index: int, chosen: int) -> Sample:
        return Sample(epoch, index, self.decoded(self.files[chosen]))

    def decoded(self, file: Path) -> Pixels:
        """`decode_picture`, from memory where there was room to keep it."""
        if file in _kept:
            return _kept[file]
        pixels = decode_picture(file)
        if sum(kept.nbytes for kept in _kept.values()) + pixels.nbytes <= self.keep_decoded:
            _kept[file] = pixels
        return pixels


_kept: dict[Path, Pixels] = {}
"""Decoded pictures of this process; several sources may read the same files."""


class UnreadablePicture(Exception):  # noqa: N818 - an event, handled where it happens
    """A file that is no picture, or a damaged one."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def decode_picture(source: Path | bytes, name: str = "") -> Pixels:
    """Decode a picture to uint8 (H, W, 3). Raises UnreadablePicture, whatever is wrong with it."""
    file: Path | BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):  # 16 bits, which Pillow would clip instead of scale
                grey = (np.asarray(image).astype(np.float64) / 257 + 0.5).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=-1)
            return np.asarray(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise all kinds of errors about damaged files
        raise UnreadablePicture(name or str(source), str(error) or type(error).__name__) from error


def list_files(paths: tuple[str, ...]) -> list[Path]:
    """All pictures below the folders, and on the text lists (one path per line), among `paths`; sorted
    within a folder, in order within a list.

    A relative path on a list starts at the list's own folder. Raises DataError where a path does not exist
    or nothing is found.
    """
    files: list[Path] = []
    for path in (Path(p).expanduser() for p in paths):
        if path.is_dir():
            found = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES)
        elif path.is_file():
            found = [path.parent / line for line in _text(path).split("\n") if line.strip()]
        else:
            raise DataError(f"data.path: {path} does not exist")
        if not found:
            kinds = ", ".join(sorted(SUFFIXES))
            raise DataError(f"data.path: no pictures in {path} ({kinds} are looked for)")
        files += found
    if not files:
        raise DataError(
            "data.path is empty", hint="give a folder of pictures, or a text file that lists them"
        )
    return files


@dataclass(frozen=True)
class Survey:
    """What a look at the size of every picture found."""

    usable: list[int]
    """Indices of the pictures that are large enough."""
    small: int
    unreadable: int


def survey(files: list[Path], side: int, small_allowed: float, quarantine: Quarantine) -> Survey:
    """Read the header of every picture, and leave out what is smaller than `side` or no picture at all.

    Raises DataError where more than `small_allowed` are too small, too many are unreadable, or none is left.
    """
    with concurrent.futures.ThreadPoolExecutor(SURVEY_THREADS) as executor:
        sizes = list(executor.map(_shorter_side, files))
    for file, size in zip(files, sizes, strict=True):
        if isinstance(size, str):
            quarantine.add(str(file), size)
    usable = [i for i, size in enumerate(sizes) if isinstance(size, int) and size >= side]
    unreadable = sum(isinstance(size, str) for size in sizes)
    small = len(files) - len(usable) - unreadable
    if not usable or small > small_allowed * len(files):
        raise DataError(
            f"{small} of {len(files)} pictures are smaller than the crop of {side} x {side} px",
            hint="use larger pictures, a smaller R, or raise data.small_allowed",
        )
    return Survey(usable, small, unreadable)


def _shorter_side(file: Path) -> int | str:
    """Shorter side in pixels, or what is wrong with the file."""
    try:
        if not file.stat().st_size:
            return "the file is empty"
        with Image.open(file) as image:
            return min(image.size)
    except Exception as error:  # as in `decode_picture`
        return str(error) or type(error).__name__


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a text list of paths, a line each, in UTF-8 ({error})") from error
