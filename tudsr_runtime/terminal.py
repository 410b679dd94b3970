"""What the user sees: results on stdout, everything else on stderr, a bar where that is a terminal."""

from __future__ import annotations

import codecs
import io
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tudsr_runtime.errors import OutputError, TudsrError
from tudsr_runtime.streams import discard, printable, printable_lines

if TYPE_CHECKING:
    from rich.progress import Progress

NAMES_AS_BYTES = "tudsr.names-as-bytes"
"""How stdout writes what it has no letters for: as the file system does."""

LINE_SECONDS = 10
"""Seconds between two lines of progress."""

BROKEN_PIPE_EXIT = 141
"""128 + SIGPIPE, what a shell reports for a program whose reader has gone."""


class Terminal:
    """The two streams of one command. `quiet` keeps notes and the bar away, never errors or results.

    `verbose` lets `detail` through; `shown` is what the user knows a path as.
    """

    def __init__(
        self, quiet: bool = False, verbose: bool = False, shown: Mapping[str, str] | None = None
    ) -> None:
        self._quiet, self._verbose, self._shown = quiet, verbose, shown or {}
        self._bar: Progress | None = None
        # A file name may hold bytes that are no text, or text that the encoding of stdout lacks.
        if isinstance(sys.stdout, io.TextIOWrapper):
            codecs.register_error(NAMES_AS_BYTES, _as_bytes)
            sys.stdout.reconfigure(errors=NAMES_AS_BYTES)

    def result(self, line: str | Path) -> None:
        """A path or lines for stdout: to the letter, but for a terminal, which would obey some of them."""
        text = self._as_shown(str(line))
        if sys.stdout.isatty():
            text = printable(text) if isinstance(line, Path) else printable_lines(text)
        with self._bar_hidden():
            print(text, flush=True)  # noqa: T201

    def file(self, path: Path) -> None:
        """The bytes of a file on stdout. Ends the command quietly if nobody reads any more.

        Raises:
            OutputError: stdout does not take them.
        """
        with self._bar_hidden(), open(path, "rb") as file:
            self._to_stdout(lambda: shutil.copyfileobj(file, sys.stdout.buffer))

    def json(self, record: Mapping[str, object]) -> None:
        """One line of JSON on stdout."""
        self.result(json.dumps(record))

    def note(self, text: str) -> None:
        """Something that the user may want to know."""
        if not self._quiet:
            self._stderr(printable(text))

    def remark(self, text: str) -> None:
        """A note on something unexpected; it begins with "note:"."""
        self.note(f"note: {text}")

    def detail(self, text: str) -> None:
        """A note for those who asked for more of them."""
        if self._verbose:
            self.note(text)

    def error(self, error: Exception, path: Path | None = None) -> None:
        """An error that does not end the command; of a bug, the traceback and the picture that it met."""
        if isinstance(error, TudsrError):
            self._stderr(describe(error))
            return
        lines = "".join(traceback.format_exception(error))
        self._stderr(f"{lines}error: {path}: this is a bug of tudsr; please report it with the lines above")

    @contextmanager
    def progress(self, tiles: int) -> Iterator[ProgressBar]:
        """Progress over all `tiles` of the command, with the time left: a bar on a terminal, else lines."""
        if self._quiet or not sys.stderr.isatty():
            yield ProgressBar(tiles, None, self.note)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} tiles"),
            TimeRemainingColumn(),
        )
        bar = Progress(
            *columns,
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        bar.add_task("", total=tiles)
        self._bar = bar
        try:
            with bar:
                yield ProgressBar(tiles, bar, self.note)
        finally:
            self._bar = None

    def _to_stdout(self, write: Callable[[], object]) -> None:
        try:
            write()
            sys.stdout.buffer.flush()
        except OSError as error:
            # Otherwise the interpreter complains when it flushes stdout at its end.
            discard(sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                raise SystemExit(BROKEN_PIPE_EXIT) from None
            raise OutputError(f"cannot write to stdout: {error.strerror or error}") from error

    def _stderr(self, text: str) -> None:
        with self._bar_hidden():
            print(printable_lines(self._as_shown(text)), file=sys.stderr, flush=True)  # noqa: T201

    @contextmanager
    def _bar_hidden(self) -> Iterator[None]:
        if self._bar is None:
            yield
            return
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()

    def _as_shown(self, text: str) -> str:
        for path, name in self._shown.items():
            text = text.replace(path, name)
        return text


class ProgressBar:
    """Counts tiles over several pictures; on a bar, or in lines `LINE_SECONDS` apart where there is none."""

    def __init__(self, tiles: int, bar: Progress | None, note: Callable[[str], None]) -> None:
        self._tiles = tiles
        self._bar = bar
        self._note = note
        self._before = 0
        self._label = ""
        self._started = self._noted = time.monotonic()

    def begin(self, label: str) -> None:
        """Name what is being worked on."""
        self._label = label
        self._show(0, label)

    def tile(self, done: int, total: int) -> None:
        """`done` tiles of `total` of the current picture are finished."""
        self._show(done, f"{self._label}, tile {done} of {total}")

    def finish(self, tiles: int) -> None:
        """The current picture, whose number of tiles is `tiles`, is finished or has failed."""
        self._before += tiles
        self._show(0, self._label)

    def _show(self, done: int, text: str) -> None:
        done += self._before
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=printable(text), completed=done)
            return
        now = time.monotonic()
        if now - self._noted >= LINE_SECONDS and done:
            left = (now - self._started) / done * (self._tiles - done)
            self._note(f"{text}; {done} of {self._tiles} in all, about {clock(left)} left")
            self._noted = now


def _as_bytes(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return os.fsencode(error.object[error.start : error.end]), error.end


def failure(error: BaseException, source: Path | None = None) -> dict[str, object]:
    """The JSON object that stands for a failure: of one picture, or, without `source`, of the command.

    SystemExit is a signal that ended it.
    """
    record: dict[str, object] = {} if source is None else {"input": str(source)}
    if isinstance(error, SystemExit):
        return {**record, "status": "stopped", "exit_code": error.code}
    return {**record, "status": "failed", "error": as_record(error)}


def mark_told(error: BaseException) -> None:
    """Remember that `--json` has told this error, so that it is told once."""
    error.told_on_stdout = True  # type: ignore[attr-defined]


def was_told(error: BaseException) -> bool:
    """Whether `--json` has told this error already."""
    return getattr(error, "told_on_stdout", False)


def counted(number: int, thing: str) -> str:
    """ "1 tile", "2 tiles"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def clock(seconds: float) -> str:
    """Minutes and seconds, "4:05", from an hour on with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe(error: TudsrError) -> str:
    """The lines that stand for an error on stderr."""
    return printable(f"error: {error}") + (f"\n{printable(f'Try: {error.hint}')}" if error.hint else "")


def as_record(error: BaseException) -> dict[str, object]:
    """An error for `--json`: type, message, hint and exit code; of a bug, the traceback too."""
    said = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, TudsrError):
        return {**said, "hint": error.hint, "exit_code": error.exit_code}
    lines = "".join(traceback.format_exception(error))
    hint = "this is a bug of tudsr; please report it with its traceback"
    return {**said, "hint": hint, "exit_code": 1, "traceback": lines}
