"""stdout and stderr: they may fail without ending the work, and what they get moves no terminal.

Within `lenient_streams`, which is the whole of a command, `sys.stderr` has a file of its own, so that what
libraries write to the process's stderr by themselves can be told from it (`raw_stderr_hidden`).
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys (control characters, turns of the writing direction), and bytes that are no text."""


STDERR = 2
"""The number of the stream that all of a process shares."""


class LenientStream(io.TextIOWrapper):
    """What `stream` writes to. Once that fails, all else goes nowhere; `failure` is the first error."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self.failure: OSError | None = None
        # Whoever drops the last reference to it closes what both write to.
        self._stream = stream

    def write(self, text: str) -> int:
        """Like that of any stream, but never an OSError."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Like that of any stream, but never an OSError."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failure = self.failure or error
        # Else what is still in the buffer would fail again, at the latest when the interpreter ends.
        with suppress(OSError):
            discard(self.fileno())


@contextmanager
def lenient_streams() -> Iterator[None]:
    """Within the block, `sys.stdout` and `sys.stderr` are lenient, where they are streams to a file."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _lenient(sys.stdout), _lenient(_apart(sys.stderr))
    _raw.apart = True
    try:
        yield
    finally:
        _raw.apart = False
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, LenientStream):
                stream.flush()
                stream.detach()
        sys.stdout, sys.stderr = before


@contextmanager
def raw_stderr_hidden() -> Iterator[None]:
    """Within the block, what is written to the process's stderr, but not by `sys.stderr`, goes nowhere.

    Libraries that decode a foreign file show its raw bytes there. Does nothing outside of `lenient_streams`,
    where stderr is the host's, or with TUDSR_DEBUG=1.
    """
    if not _raw.apart or os.environ.get("TUDSR_DEBUG") == "1":
        yield
        return
    with _raw.lock:
        shown = os.dup(STDERR)
        discard(STDERR)
        try:
            yield
        finally:
            os.dup2(shown, STDERR)
            os.close(shown)


class _Raw:
    """Whether `sys.stderr` is apart from the process's; the lock of those who exchange the latter."""

    apart = False
    lock = threading.RLock()


_raw = _Raw()


def failure_of(stream: TextIO) -> OSError | None:
    """The first error of a stream that is lenient, after writing all that it has not written yet."""
    stream.flush()
    return stream.failure if isinstance(stream, LenientStream) else None


def discard(handle: int) -> None:
    """Let whatever is written to this open file from now on go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, handle)
    os.close(nowhere)


def printable(text: str) -> str:
    """Escape what a terminal would obey, line feeds too: a file name may hold anything."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def printable_lines(text: str) -> str:
    """The text as `printable` makes it, with its line breaks."""
    return "\n".join(map(printable, text.split("\n")))


def _apart(stream: TextIO) -> TextIO:
    """A stream with a number of its own to where `stream` goes, if that is the process's stderr."""
    if not isinstance(stream, io.TextIOWrapper) or stream.fileno() != STDERR:
        return stream
    stream.flush()
    return open(os.dup(STDERR), "w", encoding=stream.encoding, errors=stream.errors, buffering=1)


def _lenient(stream: TextIO) -> TextIO:
    return LenientStream(stream) if isinstance(stream, io.TextIOWrapper) else stream
