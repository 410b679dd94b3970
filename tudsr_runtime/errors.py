"""Every error that tudsr raises on purpose. Each class carries the exit code that the command ends with.

    TudsrError
    ├── UsageError        2   an invalid option or argument
    ├── InputError        3   an input picture was rejected
    ├── BatchError        4   some pictures of a batch failed
    ├── BundleError       5   a bundle, base or adapter is missing, damaged or does not fit
    ├── DeviceError       6   a device, back end or engine is not available
    ├── MemoryExhausted   7   out of memory, after every fallback
    ├── OutputError       8   the output cannot be written
    ├── NotFiniteError    9   the model produced NaN or infinity
    └── TrainingError    10   training data or configuration

Anything else that escapes is a bug (exit code 1, with a traceback).
"""

from __future__ import annotations

import reprlib
from typing import ClassVar

_QUOTES = reprlib.Repr()
_QUOTES.maxstring, _QUOTES.maxlong, _QUOTES.maxother = 80, 40, 80


class TudsrError(Exception):
    """Base of all deliberate errors.

    `message` is one line that says what happened, with the numbers; `hint`, if any, is one thing to do about
    it (the command prints it as `Try: ...`).
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(_one_line(message))
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), self.hint)


def _one_line(message: str) -> str:
    """File names and keys of foreign files end up in messages; they must not move the terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(message.split()))


def quoted(value: object) -> str:
    """What somebody gave, for an error that says it again: its repr, without the middle where it is long."""
    try:
        return _QUOTES.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits.
        return "a number of more digits than can be shown"


def _rebuild(kind: type[TudsrError], message: str, hint: str | None) -> TudsrError:
    return kind(message, hint=hint)


class UsageError(TudsrError):
    """An invalid option or argument."""

    exit_code = 2


class InputError(TudsrError):
    """An input picture was rejected."""

    exit_code = 3


class BatchError(TudsrError):
    """Some pictures of a batch failed; the others are done."""

    exit_code = 4


class BundleError(TudsrError):
    """A bundle, base model or adapter is missing, damaged, or does not fit what was asked."""

    exit_code = 5


class DeviceError(TudsrError):
    """A device, back end or engine is not available."""

    exit_code = 6


class MemoryExhausted(TudsrError):  # noqa: N818 - MemoryError is Python's own
    """Out of memory after every fallback."""

    exit_code = 7


class OutputError(TudsrError):
    """The output cannot be written."""

    exit_code = 8


class NotFiniteError(TudsrError):
    """The model produced NaN or infinity; nothing is written rather than a black picture."""

    exit_code = 9


class TrainingError(TudsrError):
    """Training data or training configuration cannot be used."""

    exit_code = 10
