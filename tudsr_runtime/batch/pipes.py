"""Pictures through pipes: `-`, /dev/stdin and /dev/stdout, and what a shell makes of `<(command)`.

Each stands for a file in a temporary folder.
"""

from __future__ import annotations

import math
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tudsr_runtime.batch.inputs import is_folder
from tudsr_runtime.batch.outputs import fitting_suffix
from tudsr_runtime.errors import InputError, TudsrError, UsageError
from tudsr_runtime.pictures.read import read_header
from tudsr_runtime.terminal import mark_told, was_told

DASH = Path("-")
STDIN = (DASH, Path("/dev/stdin"), Path("/dev/fd/0"), Path("/proc/self/fd/0"))
STDOUT = (DASH, Path("/dev/stdout"), Path("/dev/fd/1"), Path("/proc/self/fd/1"))
DESCRIPTORS = re.compile(r"(/dev/fd|/proc/(self|\d+)/fd)/(\d+)")
"""What a shell hands over for `<(command)`."""


@dataclass(frozen=True)
class PlainFiles:
    """Inputs and output without pipes: all are files.

    `to_stdout`: what is written to `output` goes to stdout in the end. `shown` is what the user knows a file
    as that stands for a pipe, by its path.
    """

    inputs: list[Path]
    output: Path | None
    to_stdout: bool = False
    shown: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def without_pipes(inputs: Sequence[Path], output: Path | None, suffix: str | None) -> Iterator[PlainFiles]:
    """The inputs and the output with a temporary file in the place of each pipe.

    Pipes are read to their end. If one is the only input, stdout is the output unless another is named. What
    is to go to stdout is written to a file whose name ends in `suffix`; None: what the format of the input
    calls for.

    Raises:
        UsageError: several pictures for one stdout, a picture to a terminal, a pipe among several inputs and
            no output, or an output that is a device. InputError: a pipe cannot be read, or not be kept; or
            what is to go to stdout is no picture.
    """
    pipes = {path: _name(path) for path in inputs if _is_pipe(path)}
    if output is None and len(inputs) == len(pipes) == 1:
        output = DASH
    to_stdout = output in STDOUT
    if output is not None and not to_stdout:
        _check_plain(output)
    if not pipes and not to_stdout:
        yield PlainFiles(list(inputs), output)
        return
    if output is None:
        raise UsageError(f"where the result of {next(iter(pipes))} is to go was not said", hint="-o FOLDER")
    if to_stdout:
        _check_stdout(inputs)
    with tempfile.TemporaryDirectory(prefix="tudsr-") as folder:
        kept = {path: Path(folder, name) for path, name in pipes.items()}
        for path, place in kept.items():
            _save(path, place)
        named = [kept.get(path, path) for path in inputs]
        shown = {str(place): "stdin" if path in STDIN else str(path) for path, place in kept.items()}
        try:
            if to_stdout:
                output = Path(folder, f"stdout{suffix or fitting_suffix(read_header(named[0], math.inf))[0]}")
            yield PlainFiles(named, output, to_stdout, shown)
        except TudsrError as error:
            raise _as_given(error, kept, shown) from error


def _is_pipe(path: Path) -> bool:
    return path in STDIN or DESCRIPTORS.fullmatch(str(path)) is not None


def _name(path: Path) -> str:
    """The name of the file that stands for a pipe, and so of its result in a folder."""
    return "stdin" if path in STDIN else f"pipe{path.name}"


def _as_given(error: TudsrError, kept: Mapping[Path, Path], shown: Mapping[str, str]) -> TudsrError:
    """The error by what the user gave; where that lay meanwhile tells nobody anything."""
    said, hint = str(error), error.hint
    for path, place in kept.items():
        said = said.replace(str(place), shown[str(place)])
        hint = hint and hint.replace(str(place), str(path))
    renamed = type(error)(said, hint=hint)
    if was_told(error):
        mark_told(renamed)
    return renamed


def _check_plain(output: Path) -> None:
    """Raises UsageError for a device or a pipe, which no picture can be renamed to."""
    try:
        mode = output.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UsageError(
            f"-o {output} is a device or a pipe, not a file", hint=f"tudsr upscale ... -o - > {output}"
        )


def _save(pipe: Path, place: Path) -> None:
    try:
        with open(place, "wb") as file, _opened(pipe) as source:
            shutil.copyfileobj(source, file)
    except OSError as error:
        name = "stdin" if pipe in STDIN else pipe
        raise InputError(f"{name} cannot be read into {place}: {error.strerror or error}") from error


def _opened(pipe: Path) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdin.buffer) if pipe in STDIN else open(pipe, "rb")


def _check_stdout(inputs: Sequence[Path]) -> None:
    if len(inputs) > 1 or is_folder(inputs[0]):
        raise UsageError("-o - takes one picture, but there are several inputs", hint="-o FOLDER")
    if sys.stdout.isatty():
        raise UsageError("a picture would go to the terminal", hint="tudsr upscale ... > FILE, or -o FILE")
