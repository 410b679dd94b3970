"""Which pictures the arguments of `tudsr upscale` name.

In a folder, files with the suffix of a picture are taken; hidden files are left out, links to folders not
followed. What lies beside the picture that it was made from, by the folder's record, is an earlier result
and is left out too. What is named itself is always taken.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tudsr_runtime.batch.claim import is_claimed
from tudsr_runtime.batch.done import Records
from tudsr_runtime.errors import InputError
from tudsr_runtime.pictures.formats import FORMAT_OF_SUFFIX

NAMED_LIKE_A_RESULT = re.compile(r"(?P<stem>.+)_(x\d+(\.\d+)?|\d+x\d+)(_\d+)?")


@dataclass(frozen=True)
class Source:
    """An input picture; `folder` is the argument it was found in, None if it was named itself."""

    path: Path
    folder: Path | None = None


@dataclass
class Found:
    """Inputs in the order of the arguments, sorted within a folder, and what was not taken and why.

    `elsewhere` are those that another run does, of another shard.
    """

    sources: list[Source] = field(default_factory=list)
    elsewhere: list[Source] = field(default_factory=list)
    unreadable: list[tuple[Path, InputError]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def expand(inputs: Sequence[Path]) -> list[Path]:
    """Replace what is no file, but a pattern with `*`, `?`, `[...]` or `**`, by what it matches, sorted.

    Shells do so themselves, except where there is none or the pattern is quoted.
    """
    expanded: list[Path] = []
    for path in inputs:
        found = [] if os.path.lexists(path) else sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        expanded += [Path(name) for name in found] or [path]
    return expanded


def find_inputs(
    inputs: Sequence[Path],
    recursive: bool = False,
    output: Path | None = None,
    records: Records | None = None,
    required: bool = True,
) -> Found:
    """Expand folders into the pictures in them, with `recursive` also those further below.

    An `output` folder that lies inside an input folder is not searched. `records` tell earlier results. A
    folder without a picture is an error where they are `required`.
    """
    found, records = Found(), records or Records()
    for path in inputs:
        if is_folder(path):
            before = len(found.sources) + len(found.unreadable)
            _search(path, recursive, output, found, records)
            if required and len(found.sources) + len(found.unreadable) == before:
                hint = None if recursive else "-r to search its subfolders too"
                found.unreadable.append((path, InputError(f"{path}: no picture in this folder", hint=hint)))
        else:
            found.sources.append(Source(path))
    first: dict[Path, Source] = {}
    for source in found.sources:
        first.setdefault(source.path.absolute(), source)
    found.sources = list(first.values())
    return found


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder; False where the system cannot tell, as for a name that is too long."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _search(folder: Path, recursive: bool, output: Path | None, found: Found, records: Records) -> None:
    excluded = None if output is None else os.path.realpath(output)

    def unreadable(error: OSError) -> None:
        path, reason = Path(error.filename), error.strerror or error
        found.unreadable.append((path, InputError(f"{path}: the folder cannot be read: {reason}")))

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        below = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [n for n in below if recursive and os.path.realpath(Path(parent, n)) != excluded]
        visible = sorted(name for name in names if not name.startswith("."))
        _take(Path(parent), folder, visible, found, records)


def _take(parent: Path, folder: Path, names: list[str], found: Found, records: Records) -> None:
    pictures = [name for name in names if Path(name).suffix.lower() in FORMAT_OF_SUFFIX]
    others = [name for name in names if Path(name).suffix.lower() not in FORMAT_OF_SUFFIX]
    # Looked for before the record is read: what was finished in between is in that.
    being_made = {name for name in pictures if is_claimed(parent / name)}
    results = records[parent].made_beside(set(pictures)) | being_made
    taken = [name for name in pictures if name not in results]
    found.sources += [Source(parent / name, folder) for name in taken]
    if others:
        found.notes.append(f"{parent}: left out {_some(others)}, not named like a picture")
    if results:
        found.notes.append(f"{parent}: left out {_some(sorted(results))}, earlier results")
    if alike := _named_like_results(taken):
        found.notes.append(f"{parent}: {_some(alike)}: named like a result, but no record says so; taken")


def _named_like_results(names: list[str]) -> list[str]:
    stems = {Path(name).stem for name in names}
    matches = ((name, NAMED_LIKE_A_RESULT.fullmatch(Path(name).stem)) for name in names)
    return [name for name, match in matches if match is not None and match["stem"] in stems]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
