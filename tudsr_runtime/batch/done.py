"""What has been done, so that the same command goes on where it was stopped.

In every folder that a run writes to lies a file `.tudsr.jsonl`, one line for each result: its name and size,
the hash of the picture it was made from, and the options. A result counts as done only if all of this still
holds.

The folder may be shared and the file damaged or forged: it is read if it is a plain file, never through a
link; a line counts only if it is what `Done` says; and it names results of its own folder, no others.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

RECORD_FILE = ".tudsr.jsonl"

MAX_BYTES = 1 << 29
"""The largest record that is read: about a million results."""

MAX_LINE = 1 << 16
"""Bytes of a line; a name has at most 255 characters."""

# A FIFO must not be waited for, nor a link be followed; Windows has neither flag, and `_refuse` looks first.
_FLAGS = (
    getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


@dataclass(frozen=True)
class Done:
    """One result. `options` is all that it depends on besides the picture."""

    input: str
    input_sha256: str
    options: Mapping[str, object]
    output: str
    bytes: int


class Record:
    """The record of one folder. It is parsed once; later only what other runs have added since."""

    def __init__(self, folder: Path, notify: Callable[[str], None]) -> None:
        self._folder = folder
        self._path = folder / RECORD_FILE
        self._notify = notify
        self._told: set[str] = set()
        self._read = 0
        self._size = -1
        self._results: dict[tuple[str, str, str], dict[str, int]] = {}
        self._inputs: dict[str, set[str]] = {}

    def find(
        self, name: str, sha256: str, options: Mapping[str, object], output: str | None = None
    ) -> Path | None:
        """The result that was made from the picture of this name and hash with these options, if intact.

        `output`: the only name for it that will do.
        """
        self._catch_up()
        made = self._results.get((name, sha256, _key(options)), {})
        for found, size in reversed(made.items()):
            if output not in (None, found):
                continue
            path = self._folder / found
            with suppress(OSError, ValueError):
                if path.is_file() and path.stat().st_size == size:
                    return path
        return None

    def made_beside(self, names: Collection[str]) -> set[str]:
        """The files of the folder, among `names`, that were made from another one of `names`."""
        self._catch_up()
        return {name for name in names if not self._inputs.get(name, set()).isdisjoint(names)}

    def add(self, name: str, sha256: str, options: Mapping[str, object], output: Path) -> None:
        """Add a result. Where the record cannot be written, that is said."""
        try:
            done = Done(name, sha256, _plain(options), output.name, output.stat().st_size)
            self._append(json.dumps(asdict(done)).encode() + b"\n")
        except OSError as error:
            self._tell_unusable(error)

    def _catch_up(self) -> None:
        try:
            with self._open(os.O_RDONLY) as file:
                size = os.fstat(file.fileno()).st_size
                if size == self._size:
                    return
                # A file that has shrunk is another one.
                self._read = 0 if size < self._size else self._read
                self._size = size
                file.seek(self._read)
                damaged = sum(not self._take(line) for line in self._lines(file))
        except FileNotFoundError:
            return
        except OSError as error:
            self._tell_unusable(error)
            return
        if damaged:
            self._tell("damaged", f"{self._path}: damaged lines are left out ({damaged})")

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        """Whole lines, too long ones cut; one that is not ended yet is left for the next time."""
        while self._read < MAX_BYTES:
            line = part = file.readline(MAX_LINE)
            length = len(line)
            while part and not part.endswith(b"\n") and self._read + length < MAX_BYTES:
                part = file.readline(MAX_LINE)
                length += len(part)
            if not part:
                return
            self._read += length
            yield line
        self._tell("long", f"{self._path}: only the first {MAX_BYTES >> 20} MiB are read")

    def _take(self, line: bytes) -> bool:
        if not line.strip():
            return True
        if (parsed := _parsed(line)) is None:
            return False
        done, key = parsed
        made = self._results.setdefault((done.input, done.input_sha256, key), {})
        made.pop(done.output, None)
        made[done.output] = done.bytes
        self._inputs.setdefault(done.output, set()).add(done.input)
        return True

    def _append(self, line: bytes) -> None:
        with self._open(os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
            if os.fstat(file.fileno()).st_nlink > 1:
                raise OSError("it has other names (hard links), whose content would change")
            # What a crash left of a line must not spoil this one.
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            # One write of a file opened for appending: lines of several processes do not mix.
            if os.write(file.fileno(), line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # The result is on the disk; after a loss of power it must not lie there without its line.
            os.fsync(file.fileno())

    def _open(self, flags: int) -> BinaryIO:
        """Open the record. Raises OSError, also if it is no plain file."""
        with suppress(FileNotFoundError):
            _refuse_special(self._path.lstat())
        handle = os.open(self._path, flags | _FLAGS, 0o666)
        try:
            _refuse_special(os.fstat(handle))
            return open(handle, "rb")
        except BaseException:
            os.close(handle)
            raise

    def _tell_unusable(self, error: OSError) -> None:
        self._tell(
            "unusable",
            f"{self._path} is not used, what is done is not remembered: {error.strerror or error}",
        )

    def _tell(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._notify(text)


class Records:
    """The records of all folders of one run. `notify` is told what is wrong with them, each once."""

    def __init__(self, notify: Callable[[str], None] = lambda _: None) -> None:
        self._notify = notify
        self._of: dict[Path, Record] = {}

    def __getitem__(self, folder: Path) -> Record:
        if folder not in self._of:
            self._of[folder] = Record(folder, self._notify)
        return self._of[folder]


def _parsed(line: bytes) -> tuple[Done, str] | None:
    """The result that a line tells of, and the key of its options; None if it tells of none."""
    if len(line) >= MAX_LINE:
        return None
    try:
        done = Done(**json.loads(line.decode()))
        key = _key(done.options)
    # Deep nesting is a RecursionError.
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (done.input, done.input_sha256, done.output)
    if not all(isinstance(text, str) for text in texts) or type(done.bytes) is not int:
        return None
    return (done, key) if _is_plain_name(done.output) else None


def _is_plain_name(name: str) -> bool:
    """Whether it names a file of the folder itself, on any system."""
    return name not in ("", ".", "..") and not re.search(r"[/\\\0]|^[A-Za-z]:", name)


def _refuse_special(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is no plain file")


def _key(options: Mapping[str, object]) -> str:
    return json.dumps(options, sort_keys=True)


def _plain(options: Mapping[str, object]) -> Mapping[str, object]:
    """The options as they come back from JSON: tuples as lists."""
    plain: dict[str, object] = json.loads(json.dumps(options))
    return plain
