"""What has been done, so that the same command goes on where it was stopped.

In every folder that a run over several pictures writes to lies a file `.tudsr.jsonl`, one line for each
result: its name and size, the hash of the picture it was made from, and the options. A result counts as done
only if all of this still holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = ".tudsr.jsonl"


@dataclass(frozen=True)
class Done:
    """One result. `options` is all that it depends on besides the picture."""

    input: str
    input_sha256: str
    options: Mapping[str, object]
    output: str
    bytes: int


def recorded(folder: Path) -> list[Done]:
    """The results that the folder's record tells of, the latest last; unreadable lines are left out."""
    try:
        lines = (folder / NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(Done(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def find_done(folder: Path, name: str, sha256: str, options: Mapping[str, object]) -> Path | None:
    """The result in `folder` that was made from the picture of this name and hash with these options."""
    for done in reversed(recorded(folder)):
        if (done.input, done.input_sha256, done.options) != (name, sha256, _plain(options)):
            continue
        path = folder / done.output
        if path.is_file() and path.stat().st_size == done.bytes:
            return path
    return None


def remember(name: str, sha256: str, options: Mapping[str, object], output: Path) -> None:
    """Add a result to the record of its folder. Raises OSError."""
    done = Done(name, sha256, _plain(options), output.name, output.stat().st_size)
    # One write of a file opened for appending: lines of several processes do not mix.
    with open(output.parent / NAME, "ab") as file:
        file.write(json.dumps(asdict(done)).encode() + b"\n")


def _plain(options: Mapping[str, object]) -> Mapping[str, object]:
    """The options as they come back from JSON: tuples as lists."""
    plain: dict[str, object] = json.loads(json.dumps(options))
    return plain
