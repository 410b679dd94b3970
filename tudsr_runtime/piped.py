"""Pictures through stdin and stdout: `-` stands for a file in a temporary folder."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tudsr_runtime.errors import InputError, TudsrError, UsageError
from tudsr_runtime.folder import fitting_suffix, is_folder
from tudsr_runtime.image_io import read_header
from tudsr_runtime.terminal import mark_told, was_told

DASH = Path("-")


@contextmanager
def without_dashes(
    inputs: Sequence[Path], output: Path | None, suffix: str | None
) -> Iterator[tuple[list[Path], Path | None, bool]]:
    """The inputs and the output with a temporary file in the place of each `-`; and whether stdout is meant.

    stdin is read to its end. If it is the only input, stdout is the output unless another is named. What is
    to go to stdout is written to a file whose name ends in `suffix`; None: what the format of the input calls
    for.

    Raises:
        UsageError: several pictures for one stdout, a picture to a terminal, or `-` among several inputs and
            no output. InputError: stdin cannot be read, or not be kept; or what is to go to stdout is no
            picture.
    """
    if output is None and list(inputs) == [DASH]:
        output = DASH
    if DASH not in inputs and output != DASH:
        yield list(inputs), output, False
        return
    if output is None:
        raise UsageError("where the result of - is to go was not said", hint="-o FOLDER")
    if output == DASH:
        _check_stdout(inputs)
    with tempfile.TemporaryDirectory(prefix="tudsr-") as folder:
        piped = Path(folder, "stdin")
        if DASH in inputs:
            _save_stdin(piped)
        named = [piped if path == DASH else path for path in inputs]
        try:
            if output == DASH:
                output = Path(folder, f"stdout{suffix or fitting_suffix(read_header(named[0]))[0]}")
            yield named, output, output.parent == Path(folder)
        except TudsrError as error:
            # What the user gave is stdin; where it lay meanwhile tells nobody anything.
            hint = error.hint and error.hint.replace(str(piped), "-")
            renamed = type(error)(str(error).replace(str(piped), "stdin"), hint=hint)
            if was_told(error):
                mark_told(renamed)
            raise renamed from error


def _save_stdin(path: Path) -> None:
    try:
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    except OSError as error:
        raise InputError(f"stdin cannot be read into {path}: {error.strerror or error}") from error


def _check_stdout(inputs: Sequence[Path]) -> None:
    if len(inputs) > 1 or is_folder(inputs[0]):
        raise UsageError("-o - takes one picture, but there are several inputs", hint="-o FOLDER")
    if sys.stdout.isatty():
        raise UsageError("a picture would go to the terminal", hint="tudsr upscale ... > FILE, or -o FILE")
