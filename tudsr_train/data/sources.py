"""Where training pictures come from, and how pairs are made from them; one door for all sources."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tudsr_runtime.errors import TrainingError
from tudsr_runtime.streams import printable_lines
from tudsr_train.data.degradation_nano import Degradation
from tudsr_train.data.paired import PairedFiles, pair_files
from tudsr_train.data.pairs import MixedPairs, PairDataset, Pairs, Softness, Task
from tudsr_train.data.picture_files import (
    DataError,
    EpochOrder,
    PictureFiles,
    PictureSource,
    Quarantine,
    Sample,
    list_files,
    survey,
)
from tudsr_train.data.recipes import Recipe, require_shares
from tudsr_train.data.streaming import HuggingFaceLanes, Lanes, ShardLanes, expand_shards
from tudsr_train.data.synthetic_pool import synthetic_pool

SOURCES = ("synthetic", "folder", "list", "paired", "webdataset", "huggingface")
MIB = 2**20
QUARANTINE_FILE = "damaged-pictures.txt"
Notify = Callable[[str], None]


def to_stderr(text: str) -> None:
    """A line for the person who watches."""
    sys.stderr.write(printable_lines(text) + "\n")


MOST_LANES = 4096
"""Streams that are read side by side at most."""
MOST_DRAWN, MOST_SIDE = 10**6, 8192
"""Synthetic pictures at most, and pixels of their side."""


@dataclass(frozen=True)
class Data:
    """Where pictures come from. `count`, `size`, `seed` and `cache` are for synthetic ones only."""

    source: str = "synthetic"
    """synthetic, folder, list, paired, webdataset or huggingface."""
    path: tuple[str, ...] = ()
    """Folders of pictures, text lists of paths, tar shards, or the name of a Hugging Face data set."""
    lq_path: str = ""
    """paired: folder of the LQ pictures, where they are not beside the HQ ones."""
    leave_out: tuple[str, ...] = ()
    """folder, list, paired: names, without folder and ending, of pictures that no training sees; those of
    validation are drawn from them."""
    keep_decoded: int = 0
    """folder, list, paired: MiB of decoded pictures that each worker keeps, not to decode them again."""
    small_allowed: float = 0.5
    """Share of pictures that may be smaller than the crop; they are left out."""
    corrupt_allowed: float = 0.01
    """Share of pictures that may be damaged; they are left out, and listed."""
    lanes: int = 16
    """webdataset, huggingface: streams that are read side by side (see `tudsr_train.data.streaming`)."""
    split: str = "train"
    """huggingface: part of the data set."""
    column: str = "image"
    """huggingface: column with the pictures."""
    count: int = 1500
    """Synthetic pictures drawn."""
    size: int = 512
    """Side of a synthetic picture, pixels."""
    seed: int = 0
    cache: str = "~/.cache/tudsr/synthetic"
    """Folder where a drawn pool is kept for the next run."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            near = difflib.get_close_matches(self.source, SOURCES, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else f"; {', '.join(SOURCES)} are"
            raise TrainingError(f"data.source {self.source!r} is not known{meant}")
        if self.source != "synthetic" and not self.path:
            raise TrainingError(f"data.source is {self.source}, but data.path says not where")

        for name in ("small_allowed", "corrupt_allowed"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"data.{name} is a share from 0 to 1, not {getattr(self, name)}")
        if not 1 <= self.lanes <= MOST_LANES or self.keep_decoded < 0:
            raise TrainingError(
                f"data: lanes must be 1 to {MOST_LANES} and keep_decoded at least 0, not {self.lanes} and "
                f"{self.keep_decoded}"
            )
        count, size = 1 <= self.count <= MOST_DRAWN, 1 <= self.size <= MOST_SIDE
        if self.source == "synthetic" and not (count and size and self.seed >= 0):
            raise TrainingError(
                f"data: no pictures can be drawn with count {self.count}, size {self.size}, seed {self.seed}"
            )

    def synthetic_pool(self) -> NDArray[np.uint8]:
        """Synthetic pictures, uint8 (count, size, size, 3), read-only: drawn, or mapped from the cache."""
        return synthetic_pool(self.count, self.size, self.seed, self.cache)


@dataclass(frozen=True)
class MixedData:
    """Several sources; every picture is of one of them, drawn by weight."""

    parts: tuple[Data, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        require_shares(self.weights, "data")


Pictures = Data | MixedData


def training_pairs(
    data: Pictures,
    task: Task,
    softness: Softness,
    recipe: Recipe,
    seed: int,
    length: int,
    run: Path,
    notify: Notify = to_stderr,
    held_out: bool = False,
) -> PairDataset:
    """Pairs (x_L, x_H) by number, float32 (3, R, R) and (3, crop, crop) in [-1, 1].

    A pair depends on its number and `seed` alone: not on processes, machines or restarts.

    Args:
        task: sizes; `task.crop` is R in stage 1 and N R in stage 2, `task.enlarge_back_to` is R.
        softness: for synthetic pictures, alone with nano's recipe, or in a mixture with any.
        length: numbers that will be asked for.
        run: the run's folder; damaged pictures are listed in it.
        notify: told what was found, and what was left out.
        held_out: pictures that `data.leave_out` names, where it names any; of a mixture, those alone.

    Raises:
        DataError (exit 10): no pictures, or too many that are too small or damaged.
    """

    def opened(part: Data, softness: Softness | None) -> Pairs:
        if part.source == "synthetic" and softness:
            return Pairs(part.synthetic_pool(), task, softness, recipe, seed, length)
        return Pairs(open_source(part, task, seed, run, notify, held_out), task, None, recipe, seed, length)

    if not isinstance(data, MixedData):
        return opened(data, softness if isinstance(recipe, Degradation) else None)
    drawn = list(zip(data.parts, data.weights, strict=True))
    if held_out and any(part.leave_out for part in data.parts):
        drawn = [(part, weight) for part, weight in drawn if part.leave_out]
    pairs = [opened(part, softness) for part, _ in drawn]
    return MixedPairs(pairs, tuple(weight for _, weight in drawn), seed, length)


def softens(data: Pictures, recipe: Recipe) -> bool:
    """Whether `softness` is heeded: for synthetic pictures alone with nano's recipe, or in a mixture."""
    if isinstance(data, MixedData):
        return any(part.source == "synthetic" for part in data.parts)
    return data.source == "synthetic" and isinstance(recipe, Degradation)


def open_source(
    data: Data, task: Task, seed: int, run: Path, notify: Notify, held_out: bool = False
) -> PictureSource:
    """The pictures that `data` names, checked as far as that is quick."""
    if data.source == "synthetic":
        return SyntheticPictures(data.synthetic_pool(), seed)
    if data.source in ("folder", "list"):
        files = _without_left_out(list_files(data.path), data, held_out)
        usable, quarantine = _usable(files, data, task, run, notify)
        return PictureFiles([files[i] for i in usable], seed, quarantine, data.keep_decoded * MIB)
    if data.source == "paired":
        pairs = pair_files(data.path, data.lq_path)
        kept = set(_without_left_out([high for high, _ in pairs], data, held_out))
        pairs = [pair for pair in pairs if pair[0] in kept]
        usable, quarantine = _usable([high for high, _ in pairs], data, task, run, notify)
        return PairedFiles([pairs[i] for i in usable], seed, quarantine, data.keep_decoded * MIB)
    return _open_stream(data, task, seed, run, notify)


def _without_left_out(files: list[Path], data: Data, held_out: bool) -> list[Path]:
    """The files that are trained on, or those that are not; DataError where a name is no picture's."""
    unknown = set(data.leave_out) - {file.stem for file in files}
    if unknown:
        raise DataError(f"data.leave_out: there is no picture {sorted(unknown)[0]!r} in data.path")
    wanted = held_out and bool(data.leave_out)
    return [file for file in files if (file.stem in data.leave_out) == wanted]


def _usable(
    files: list[Path], data: Data, task: Task, run: Path, notify: Notify
) -> tuple[list[int], Quarantine]:
    """Indices of the files that are large enough and pictures at all; what is left out is said."""
    quarantine = Quarantine(run / QUARANTINE_FILE, len(files), data.corrupt_allowed)
    found = survey(files, task.crop, data.small_allowed, quarantine)
    notify(
        f"data: {len(found.usable)} pictures; left out {found.small} smaller than {task.crop} px "
        f"and {found.unreadable} unreadable"
    )
    return found.usable, quarantine


def _open_stream(data: Data, task: Task, seed: int, run: Path, notify: Notify) -> PictureSource:
    open_lane: ShardLanes | HuggingFaceLanes
    if data.source == "webdataset":
        shards = expand_shards(data.path)
        open_lane, what = ShardLanes(shards, seed, min(data.lanes, len(shards))), f"{len(shards)} shards"
    else:
        what = data.path[0]
        open_lane = HuggingFaceLanes.open(what, data.split, data.column, data.lanes)
    notify(
        f"data: {what}, streamed in {open_lane.lanes} lanes; "
        f"pictures smaller than {task.crop} px are left out"
    )
    quarantine = Quarantine(run / QUARANTINE_FILE, 0, data.corrupt_allowed)
    return Lanes(open_lane, open_lane.lanes, task.crop, data.small_allowed, quarantine)


class SyntheticPictures:
    """The synthetic pool as a source like any other."""

    def __init__(self, pool: NDArray[np.uint8], seed: int) -> None:
        self.pool = pool
        self.order = EpochOrder(len(self.pool), seed)

    def __getitem__(self, number: int) -> Sample:
        epoch, index = self.order(number)
        return Sample(epoch, index, self.pool[index])
