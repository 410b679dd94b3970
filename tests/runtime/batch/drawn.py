"""Pictures to enlarge, and what became of them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli
from tudsr_runtime.batch import done as record

ROOT = Path(cli.__file__).parent


def draw(path: Path, width: int = 13, height: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(levels).save(path)
    return path


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def files(folder: Path) -> list[str]:
    """All but the records of what is done."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != record.RECORD_FILE)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def start(script: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Run `script` with the repository on its path; it has the command line in sys.argv."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        **options,
    )


def until_ready(process: subprocess.Popen[str]) -> None:
    """Until it says "ready" on stderr; what it says before is passed over."""
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        if line == "ready\n":
            return
        said.append(line)
    pytest.fail(f"it has ended before it was ready: {''.join(said)}")


def read_terminal(controller: int) -> Iterator[bytes]:
    """What is written to a pseudo-terminal until all have closed it. It holds a few kB that nobody reads."""
    while True:
        try:
            data = os.read(controller, 65536)
        except OSError:
            return
        if not data:
            return
        yield data
