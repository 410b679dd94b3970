"""Where training pictures come from, and how pairs are made from them; one door for all sources."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tudsr_runtime.errors import TrainingError
from tudsr_runtime.streams import printable_lines
from tudsr_train.data.degradation_nano import Degradation
from tudsr_train.data.paired import PairedFiles, pair_files
from tudsr_train.data.pairs import Pairs, Softness, Synthetic, Task, synthetic_pool
from tudsr_train.data.picture_files import (
    DataError,
    EpochOrder,
    PictureFiles,
    Pixels,
    Quarantine,
    Sample,
    Source,
    list_files,
    survey,
)
from tudsr_train.data.recipes import Recipe, draw_share, enlarged, low_quality, require_shares
from tudsr_train.data.streaming import HuggingFaceLanes, Lanes, ShardLanes, expand_shards

SOURCES = ("synthetic", "folder", "list", "paired", "webdataset", "huggingface")
MIB = 2**20
QUARANTINE_FILE = "damaged-pictures.txt"
Say = Callable[[str], None]


def _to_stderr(text: str) -> None:
    sys.stderr.write(printable_lines(text) + "\n")


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
    """Their side, pixels."""
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

    @property
    def synthetic(self) -> Synthetic:
        return Synthetic(self.count, self.size, self.seed, self.cache)


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
    say: Say = _to_stderr,
    held_out: bool = False,
) -> Dataset[tuple[Tensor, Tensor]]:
    """Pairs (x_L, x_H) by number, float32 (3, R, R) and (3, crop, crop) in [-1, 1].

    A pair depends on its number and `seed` alone: not on processes, machines or restarts.

    Args:
        task: sizes; `task.crop` is R in stage 1 and N R in stage 2, `task.enlarge_back_to` is R.
        softness: for synthetic pictures, alone with nano's recipe, or in a mixture with any.
        length: numbers that will be asked for.
        run: the run's folder; damaged pictures are listed in it.
        say: told what was found, and what was left out.
        held_out: pictures that `data.leave_out` names, where it names any; of a mixture, those alone.

    Raises:
        DataError (exit 10): no pictures, or too many that are too small or damaged.
    """
    if isinstance(data, MixedData):
        drawn = list(zip(data.parts, data.weights, strict=True))
        if held_out and any(part.leave_out for part in data.parts):
            drawn = [(part, weight) for part, weight in drawn if part.leave_out]
        pairs = [_pairs(part, task, softness, recipe, seed, length, run, say, held_out) for part, _ in drawn]
        return MixedPairs(pairs, tuple(weight for _, weight in drawn), seed, length)
    if data.source == "synthetic" and not isinstance(recipe, Degradation):
        return PicturePairs(SyntheticPictures(data.synthetic, seed), task, recipe, seed, length)
    return _pairs(data, task, softness, recipe, seed, length, run, say, held_out)


def _pairs(
    data: Data,
    task: Task,
    softness: Softness,
    recipe: Recipe,
    seed: int,
    length: int,
    run: Path,
    say: Say,
    held_out: bool,
) -> Dataset[tuple[Tensor, Tensor]]:
    if data.source == "synthetic":
        return Pairs(synthetic_pool(data.synthetic), task, softness, recipe, seed, length)
    return PicturePairs(open_source(data, task, seed, run, say, held_out), task, recipe, seed, length)


class MixedPairs(Dataset[tuple[Tensor, Tensor]]):
    """Pairs by number, each of the source that (seed, number) draws."""

    def __init__(
        self, parts: list[Dataset[tuple[Tensor, Tensor]]], weights: tuple[float, ...], seed: int, length: int
    ) -> None:
        self.parts, self.weights, self.seed, self.length = parts, weights, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        chosen = draw_share(self.weights, np.random.default_rng([self.seed, number, 0x3A]))
        return self.parts[chosen][number]


def open_source(data: Data, task: Task, seed: int, run: Path, say: Say, held_out: bool = False) -> Source:
    """The pictures that `data` names, checked as far as that is quick."""
    if data.source == "synthetic":
        return SyntheticPictures(data.synthetic, seed)
    if data.source in ("folder", "list"):
        files = _without_left_out(list_files(data.path), data, held_out)
        usable, quarantine = _usable(files, data, task, run, say)
        return PictureFiles([files[i] for i in usable], seed, quarantine, data.keep_decoded * MIB)
    if data.source == "paired":
        pairs = pair_files(data.path, data.lq_path)
        kept = set(_without_left_out([high for high, _ in pairs], data, held_out))
        pairs = [pair for pair in pairs if pair[0] in kept]
        usable, quarantine = _usable([high for high, _ in pairs], data, task, run, say)
        return PairedFiles([pairs[i] for i in usable], seed, quarantine, data.keep_decoded * MIB)
    return _open_stream(data, task, seed, run, say)


def _without_left_out(files: list[Path], data: Data, held_out: bool) -> list[Path]:
    """The files that are trained on, or those that are not; DataError where a name is no picture's."""
    unknown = set(data.leave_out) - {file.stem for file in files}
    if unknown:
        raise DataError(f"data.leave_out: there is no picture {sorted(unknown)[0]!r} in data.path")
    wanted = held_out and bool(data.leave_out)
    return [file for file in files if (file.stem in data.leave_out) == wanted]


def _usable(files: list[Path], data: Data, task: Task, run: Path, say: Say) -> tuple[list[int], Quarantine]:
    """Indices of the files that are large enough and pictures at all; what is left out is said."""
    quarantine = Quarantine(run / QUARANTINE_FILE, len(files), data.corrupt_allowed)
    found = survey(files, task.crop, data.small_allowed, quarantine)
    say(
        f"data: {len(found.usable)} pictures; left out {found.small} smaller than {task.crop} px "
        f"and {found.unreadable} unreadable"
    )
    return found.usable, quarantine


def _open_stream(data: Data, task: Task, seed: int, run: Path, say: Say) -> Source:
    open_lane: ShardLanes | HuggingFaceLanes
    if data.source == "webdataset":
        shards = expand_shards(data.path)
        open_lane, what = ShardLanes(shards, seed, min(data.lanes, len(shards))), f"{len(shards)} shards"
    else:
        what = data.path[0]
        open_lane = HuggingFaceLanes.open(what, data.split, data.column, data.lanes)
    say(
        f"data: {what}, streamed in {open_lane.lanes} lanes; "
        f"pictures smaller than {task.crop} px are left out"
    )
    quarantine = Quarantine(run / QUARANTINE_FILE, 0, data.corrupt_allowed)
    return Lanes(open_lane, open_lane.lanes, task.crop, data.small_allowed, quarantine)


class SyntheticPictures:
    """The synthetic pool as a source like any other."""

    def __init__(self, config: Synthetic, seed: int) -> None:
        self.pool = synthetic_pool(config)
        self.order = EpochOrder(len(self.pool), seed)

    def __getitem__(self, number: int) -> Sample:
        epoch, index = self.order(number)
        return Sample(epoch, index, self.pool[index])


class PicturePairs(Dataset[tuple[Tensor, Tensor]]):
    """Crops of a source's pictures with the LQ pictures that a recipe, or the source itself, makes of them.

    Every draw comes from a generator seeded by (seed, epoch, index).
    """

    def __init__(self, source: Source, task: Task, recipe: Recipe, seed: int, length: int) -> None:
        self.source, self.task, self.recipe = source, task, recipe
        self.seed, self.length = seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        with _single_thread():
            sample = self.source[number]
            rng = np.random.default_rng([self.seed, sample.epoch, sample.index])
            high, low = _crop(sample, self.task.crop, rng)
            x_H, side = _as_tensor(high), self.task.enlarge_back_to
            x_L = self._degraded(x_H, rng) if low is None else enlarged(_as_tensor(low), side)
            return x_L * 2 - 1, x_H * 2 - 1

    def _degraded(self, x_H: Tensor, rng: np.random.Generator) -> Tensor:
        scale = int(rng.choice(self.task.reductions))
        return low_quality(x_H, scale, self.task.enlarge_back_to, self.recipe, rng)


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    """torch's resizing rounds another way with another number of threads; workers always have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _crop(sample: Sample, side: int, rng: np.random.Generator) -> tuple[Pixels, Pixels | None]:
    """A crop of `side` HQ pixels, flipped half the time, and the same part of the LQ picture."""
    factor = 1 if sample.low is None else sample.high.shape[0] // sample.low.shape[0]
    height, width = (length // factor for length in sample.high.shape[:2])
    if min(height, width) * factor < side or side % factor:
        raise DataError(f"a picture of {width * factor} x {height * factor} px has no crop of {side} px")
    top, left = (int(rng.integers(length - side // factor + 1)) for length in (height, width))
    flip = rng.random() < 0.5
    high = _cut(sample.high, top * factor, left * factor, side, flip)
    return high, None if sample.low is None else _cut(sample.low, top, left, side // factor, flip)


def _cut(pixels: Pixels, top: int, left: int, side: int, flip: bool) -> Pixels:
    crop = pixels[top : top + side, left : left + side]
    return crop[:, ::-1] if flip else crop


def _as_tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1).contiguous()
