"""Training pictures from sets that do not fit a disk: tar shards (WebDataset), Hugging Face data sets.

A stream can only be read forward, but a number has to stand for the same picture in every process and after
every restart. So the set is dealt out to a fixed number of lanes, as cards are to players: lane l of L holds
shards l, l + L, l + 2 L ... of the epoch's order, one record after another, and number n is record n // L of
lane n % L. A worker asks for growing numbers and so reads its lanes forward; what it skips is not decoded.
Each process reads few lanes only if L is a multiple of batch size x workers x processes.
"""

from __future__ import annotations

import functools
import glob
import itertools
import re
import tarfile
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tudsr_runtime.installation import install_hint
from tudsr_train.data.picture_files import (
    SUFFIXES,
    DataError,
    Quarantine,
    Sample,
    UnreadablePicture,
    decode_picture,
)

StreamedPicture = tuple[str, Callable[[], bytes]]
"""Name, and how to get its bytes before the next record is asked for."""
OpenLane = Callable[[int, int], Iterator[StreamedPicture]]
"""(lane, epoch) to records."""

FEWEST_TO_JUDGE = 100  # records, before a share of bad ones says anything
TRIES = 3
SECONDS_BETWEEN_TRIES = 2.0


class Lanes:
    """Pictures of a stream by number; what is damaged or too small gives way to the lane's next record."""

    def __init__(
        self, open_lane: OpenLane, lanes: int, side: int, small_allowed: float, quarantine: Quarantine
    ) -> None:
        self.open_lane, self.lanes, self.side = open_lane, lanes, side
        self.small_allowed, self.quarantine = small_allowed, quarantine
        self.seen: set[str] = set()
        self.small: set[str] = set()
        self._cursors: dict[int, _Cursor] = {}

    def __getitem__(self, number: int) -> Sample:
        position, lane = divmod(number, self.lanes)
        cursor = self._cursors.get(lane)
        if cursor is None or position < cursor.position:
            cursor = self._cursors[lane] = _Cursor(_endless(self.open_lane, lane))
        cursor.move_to(position)
        for ahead in itertools.count():
            epoch, name, data = cursor.peek(ahead)
            self.seen.add(name)
            try:
                pixels = decode_picture(data, name)
            except UnreadablePicture as error:
                self.quarantine.total = max(FEWEST_TO_JUDGE, len(self.seen))
                self.quarantine.add(error.name, error.reason)
                continue
            if min(pixels.shape[:2]) >= self.side:
                return Sample(epoch, number, pixels)
            self._note_small(name)
        raise AssertionError("count() does not end")

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_cursors": {}}  # an open stream stays in its process

    def _note_small(self, name: str) -> None:
        self.small.add(name)
        if len(self.small) > self.small_allowed * max(FEWEST_TO_JUDGE, len(self.seen)):
            raise DataError(
                f"{len(self.small)} of {len(self.seen)} streamed pictures are smaller than the crop of "
                f"{self.side} x {self.side} px: use larger pictures, or raise data.small_allowed"
            )


class _Cursor:
    """A place in a lane: `position` is the number of the record that `peek(0)` shows."""

    def __init__(self, records: Iterator[tuple[int, StreamedPicture]]) -> None:
        self._records = records
        self._ahead: deque[tuple[int, str, bytes]] = deque()
        self.position = 0

    def move_to(self, position: int) -> None:
        while self.position < position:
            if self._ahead:
                self._ahead.popleft()
            else:
                next(self._records)
            self.position += 1

    def peek(self, ahead: int) -> tuple[int, str, bytes]:
        """(epoch, name, bytes) of the record that is `ahead` places further on."""
        while len(self._ahead) <= ahead:
            epoch, (name, read) = next(self._records)
            self._ahead.append((epoch, name, read()))
        return self._ahead[ahead]


def _endless(open_lane: OpenLane, lane: int) -> Iterator[tuple[int, StreamedPicture]]:
    for epoch in itertools.count():
        record = None
        for record in open_lane(lane, epoch):
            yield epoch, record
        if record is None:
            raise DataError("data.path: no pictures in the stream")


@dataclass(frozen=True)
class ShardLanes:
    """Lanes over tar shards, whose order is drawn anew for every epoch."""

    shards: list[str]
    seed: int
    lanes: int

    def __call__(self, lane: int, epoch: int) -> Iterator[StreamedPicture]:
        order = np.random.default_rng([self.seed, epoch, 0x5A]).permutation(len(self.shards))
        for i in order[lane :: self.lanes]:
            yield from read_shard(self.shards[i])


def expand_shards(paths: tuple[str, ...]) -> list[str]:
    """Shards by name: `train-{000..146}.tar` counts, * and ? match files, and a URL stays as it is."""
    shards = [shard for path in paths for pattern in _counted(path) for shard in _matching(pattern)]
    if not shards:
        raise DataError(f"data.path: no shards in {', '.join(paths)}")
    return shards


def _counted(pattern: str) -> list[str]:
    span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not span:
        return [pattern]
    numbers = (str(n).zfill(len(span[1])) for n in range(int(span[1]), int(span[2]) + 1))
    return [name for n in numbers for name in _counted(pattern[: span.start()] + n + pattern[span.end() :])]


def _matching(pattern: str) -> list[str]:
    if _is_url(pattern):
        return [pattern]
    path = Path(pattern).expanduser()
    if path.is_dir():
        return sorted(str(file) for file in path.glob("*.tar"))
    found = sorted(glob.glob(str(path)))  # noqa: PTH207 - the pattern is the user's, of any depth
    if not found:
        raise DataError(f"data.path: {pattern} does not exist")
    return found


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def read_shard(shard: str) -> Iterator[StreamedPicture]:
    """Pictures of one tar file, in its order; a broken connection is taken up again where it broke."""
    done, tries = 0, 0
    while True:
        try:
            for number, record in enumerate(_members(shard)):
                if number < done:
                    continue
                yield record
                done, tries = number + 1, 0
            return
        except (OSError, tarfile.TarError) as error:
            tries += 1
            if tries == TRIES or not _is_url(shard):
                raise DataError(f"shard {shard} cannot be read: {error}") from error
            time.sleep(SECONDS_BETWEEN_TRIES)


def _members(shard: str) -> Iterator[StreamedPicture]:
    address = shard if _is_url(shard) else Path(shard).resolve().as_uri()
    with (
        urllib.request.urlopen(address, timeout=60) as stream,
        tarfile.open(fileobj=stream, mode="r|*") as tar,
    ):
        for member in tar:
            if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
                file = tar.extractfile(member)
                assert file is not None  # it is a plain file
                yield f"{shard}:{member.name}", file.read


@dataclass(frozen=True)
class HuggingFaceLanes:
    """Lanes over a streamed data set; every epoch has the set's own order."""

    name: str
    stream: Any
    column: str
    lanes: int

    @classmethod
    def open(cls, name: str, split: str, column: str, lanes: int) -> HuggingFaceLanes:
        """A set of the Hugging Face hub, or in a local folder, in `lanes` lanes or as many as it has files.

        Raises DataError where the package `datasets` is missing, or the set, its split or its column.
        """
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                "data.source huggingface needs the package `datasets`", hint=install_hint("stream")
            ) from error
        try:
            stream = datasets.load_dataset(name, split=split, streaming=True)
            stream = stream.select_columns(column).cast_column(column, datasets.Image(decode=False))
        except (OSError, ValueError) as error:
            raise DataError(f"data.path: {name}, split {split}, column {column}: {error}") from error
        return cls(name, stream, column, min(lanes, stream.num_shards))

    def __call__(self, lane: int, _epoch: int) -> Iterator[StreamedPicture]:
        for number, row in enumerate(self.stream.shard(self.lanes, lane)):
            yield f"{self.name}:{lane}/{number}", functools.partial(_bytes_of, row[self.column])


def _bytes_of(image: dict[str, object]) -> bytes:
    data, path = image["bytes"], image["path"]
    return data if isinstance(data, bytes) else Path(str(path)).read_bytes()
