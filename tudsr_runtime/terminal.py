"""What the user sees: results on stdout, everything else on stderr, a progress bar only on a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tudsr_runtime.errors import TudsrError

if TYPE_CHECKING:
    from rich.progress import Progress

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
"""Control characters but the line feed."""

BROKEN_PIPE_EXIT = 141
"""128 + SIGPIPE, what a shell reports for a program whose reader has gone."""


class Terminal:
    """The two streams of one command. `quiet` keeps notes and the bar away, never errors or results."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        # A file name may hold bytes that are no text; they are to come out as they went in.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")

    def result(self, line: str | Path) -> None:
        """One line of stdout. Ends the command quietly if nobody reads any more."""
        with self._bar_hidden():
            try:
                print(line, flush=True)  # noqa: T201
            except BrokenPipeError:
                # Otherwise the interpreter complains when it flushes stdout at its end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise SystemExit(BROKEN_PIPE_EXIT) from None

    def json(self, record: Mapping[str, object]) -> None:
        """One line of JSON on stdout."""
        self.result(json.dumps(record))

    def note(self, text: str) -> None:
        """Something that the user may want to know."""
        if not self._quiet:
            self._stderr(text)

    def error(self, error: TudsrError) -> None:
        """An error that does not end the command."""
        self._stderr(describe(error))

    @contextmanager
    def progress(self, tiles: int) -> Iterator[ProgressBar]:
        """A bar over all `tiles` of the command, with the time left; nothing where there is no terminal."""
        if self._quiet or not sys.stderr.isatty():
            yield ProgressBar(None)
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
                yield ProgressBar(bar)
        finally:
            self._bar = None

    def _stderr(self, text: str) -> None:
        with self._bar_hidden():
            print(printable(text), file=sys.stderr, flush=True)  # noqa: T201

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


class ProgressBar:
    """Counts tiles over several pictures."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._before = 0

    def begin(self, label: str) -> None:
        """Show what is being worked on."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=label)

    def tile(self, done: int, _total: int) -> None:
        """`done` tiles of the current picture are finished."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._before + done)

    def finish(self, tiles: int) -> None:
        """The current picture, of so many tiles, is finished or has failed."""
        self._before += tiles
        self.tile(0, 0)


def describe(error: TudsrError) -> str:
    """The lines that stand for an error on stderr."""
    return printable(f"error: {error}" + (f"\nTry: {error.hint}" if error.hint else ""))


def printable(text: str) -> str:
    """Escape what a terminal would obey: a file name may hold anything."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
