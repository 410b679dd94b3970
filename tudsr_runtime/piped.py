"""Pictures through stdin and stdout: `-` stands for a file in a temporary folder."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tudsr_runtime.errors import UsageError

DASH = Path("-")


@contextmanager
def without_dashes(
    inputs: Sequence[Path], output: Path | None, suffix: str
) -> Iterator[tuple[list[Path], Path | None, bool]]:
    """The inputs and the output with a temporary file in the place of each `-`; and whether stdout is meant.

    stdin is read to its end. If it is the only input, stdout is the output unless another is named. What is
    to go to stdout is written to a file whose name ends in `suffix`.

    Raises:
        UsageError: several pictures for one stdout, or a picture to a terminal.
    """
    if output is None and list(inputs) == [DASH]:
        output = DASH
    if DASH not in inputs and output != DASH:
        yield list(inputs), output, False
        return
    if output == DASH:
        _check_stdout(inputs)
    with tempfile.TemporaryDirectory(prefix="tudsr-") as folder:
        piped = Path(folder, "stdin")
        if DASH in inputs:
            with open(piped, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        named = [piped if path == DASH else path for path in inputs]
        yield named, Path(folder, f"stdout{suffix}") if output == DASH else output, output == DASH


def _check_stdout(inputs: Sequence[Path]) -> None:
    if len(inputs) > 1 or inputs[0].is_dir():
        raise UsageError("-o - takes one picture, but there are several inputs", hint="-o FOLDER")
    if sys.stdout.isatty():
        raise UsageError("a picture would go to the terminal", hint="tudsr upscale ... > FILE, or -o FILE")
