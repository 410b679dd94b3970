"""Which of the pictures that were found this run does: by patterns, and as one of several machines.

A shard is told by a hash of a picture's path below the folder that was named, so that machines that never
speak to each other agree, and a picture that is added moves no other one.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tudsr_runtime.batch.inputs import Found, Source
from tudsr_runtime.errors import InputError, UsageError, quoted
from tudsr_runtime.terminal import counted

SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT")
KUBERNETES = "JOB_COMPLETION_INDEX"


@dataclass(frozen=True)
class Shard:
    """One of `count` parts, `number` from 1 to `count`; `said` is where that was read."""

    number: int
    count: int
    said: str = "as asked"

    def holds(self, source: Source) -> bool:
        """Whether the picture is of this part: SHA-1 of its path, modulo the number of parts.

        The suffix and the case do not count, so that pictures whose results could have one name are in one
        part, where that is noticed.
        """
        path = unicodedata.normalize("NFC", _below(source)).casefold()
        stem = path.rpartition(".")[0] or path
        digest = hashlib.sha1(stem.encode("utf-8", "surrogateescape"), usedforsecurity=False).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count} ({self.said})"


def parse_shard(text: str | None, environ: Mapping[str, str]) -> Shard | None:
    """The shard of --shard: "2/5", or "auto" and "auto/5", which read Slurm's or Kubernetes' variables.

    Raises:
        UsageError: it is neither, out of its range, or the variables do not tell it.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(auto|\d{1,6})(?:/(\d{1,6}))?", text, re.ASCII)
    if not found or (found[1] != "auto" and not found[2]):
        raise UsageError(f"--shard {quoted(text)} is no part of a whole", hint="--shard 1/3, or --shard auto")
    count = int(found[2]) if found[2] else None
    shard = _of_environment(count, environ) if found[1] == "auto" else Shard(int(found[1]), count or 0)
    if not 1 <= shard.number <= shard.count:
        raise UsageError(f"--shard {text}: there is no part {shard.number} of {shard.count}; the first is 1")
    return shard


def _of_environment(count: int | None, environ: Mapping[str, str]) -> Shard:
    task, first, step, tasks = (_number(name, environ) for name in SLURM)
    if task is not None:
        count = count or tasks
        if count is None:
            raise UsageError(f"--shard auto: {SLURM[3]} is not set", hint="--shard auto/COUNT")
        number = task - (first or 0)
        if number % (step or 1) or (tasks or count) != count:
            listed = f"{SLURM[0]}={task}, {SLURM[3]}={tasks}"
            raise UsageError(f"--shard auto: {listed} is not one of {count} in a row", hint="--array=1-COUNT")
        return Shard(number // (step or 1) + 1, count, f"{SLURM[0]}={task}")
    index = _number(KUBERNETES, environ)
    if index is None:
        raise UsageError(f"--shard auto: neither {SLURM[0]} nor {KUBERNETES} is set", hint="--shard 1/3")
    if count is None:
        raise UsageError(
            "--shard auto: Kubernetes does not tell how many there are", hint="--shard auto/COUNT"
        )
    return Shard(index + 1, count, f"{KUBERNETES}={index}")


def _number(name: str, environ: Mapping[str, str]) -> int | None:
    value = environ.get(name, "")
    if value and not re.fullmatch(r"\d{1,9}", value, re.ASCII):
        raise UsageError(f"--shard auto: {name}={quoted(value)} is no number")
    return int(value) if value else None


@dataclass(frozen=True)
class Selection:
    """Patterns that pictures in folders must and must not match, and the part of them that is done here."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    shard: Shard | None = None

    def narrow(self, found: Found, required: bool = True) -> None:
        """Leave in `found` what is selected, and say what was left out; others' parts become `elsewhere`.

        A folder of which the patterns leave nothing is an error where pictures are `required`; one of which
        the shard leaves nothing is not.
        """
        self._by_patterns(found, required)
        if self.shard is not None:
            ours = [source for source in found.sources if self.shard.holds(source)]
            found.elsewhere = [source for source in found.sources if not self.shard.holds(source)]
            all_of_them = counted(len(found.sources), "picture")
            found.notes.append(f"{self.shard}: {len(ours)} of {all_of_them}")
            found.sources = ours

    def _by_patterns(self, found: Found, required: bool) -> None:
        if not (self.include or self.exclude):
            return
        left = [source for source in found.sources if self.takes(source)]
        folders = {source.folder: 0 for source in found.sources if source.folder is not None}
        for source in left:
            if source.folder is not None:
                folders[source.folder] += 1
        for folder in (folder for folder, count in folders.items() if required and not count):
            error = InputError(f"{folder}: no picture in this folder is left by --include and --exclude")
            found.unreadable.append((folder, error))
        if out := len(found.sources) - len(left):
            found.notes.append(f"--include and --exclude leave out {counted(out, 'picture')}")
        found.sources = left

    def takes(self, source: Source) -> bool:
        """Whether a picture is selected by the patterns; one that was named itself always is."""
        if source.folder is None:
            return True
        path = _below(source)
        included = not self.include or any(matches(path, pattern) for pattern in self.include)
        return included and not any(matches(path, pattern) for pattern in self.exclude)


def matches(path: str, pattern: str) -> bool:
    """Whether a path below the folder, parts apart by "/", matches: with "/" in the pattern as a whole, where
    `*` stands for several folders too, else the name of the file or of a folder that it is in."""
    if "/" in pattern:
        return fnmatchcase(path, pattern.removeprefix("/"))
    return any(fnmatchcase(part, pattern) for part in path.split("/"))


def _below(source: Source) -> str:
    """The path of a picture below the folder that it was found in, or as it was named."""
    path = source.path.relative_to(source.folder) if source.folder else source.path
    return os.fspath(path).replace(os.sep, "/")
