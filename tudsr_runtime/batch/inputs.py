"""From the arguments of `tudsr upscale` to pairs of input and output, settled before anything is computed.

In a folder, files with the suffix of a picture are taken; hidden files are left out, links to folders not
followed. What lies beside the picture that it was made from, by the folder's record, is an earlier result
and is left out too. What is named itself is always taken.
"""

from __future__ import annotations

import glob
import os
import re
import tempfile
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

from tudsr_runtime.atomic import sweep
from tudsr_runtime.batch.done import Records
from tudsr_runtime.errors import InputError, OutputError, UsageError
from tudsr_runtime.pictures.read import Header
from tudsr_runtime.pictures.write import FORMAT_OF_SUFFIX, FORMATS, output_format

PICTURE_SUFFIXES = frozenset(FORMAT_OF_SUFFIX)

NAMED_LIKE_A_RESULT = re.compile(r"(?P<stem>.+)_(x\d+(\.\d+)?|\d+x\d+)(_\d+)?")


@dataclass(frozen=True)
class Source:
    """An input picture; `folder` is the argument it was found in, None if it was named itself."""

    path: Path
    folder: Path | None = None


@dataclass
class Found:
    """Inputs in the order of the arguments, sorted within a folder, and what was not taken and why."""

    sources: list[Source] = field(default_factory=list)
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
) -> Found:
    """Expand folders into the pictures in them, with `recursive` also those further below.

    An `output` folder that lies inside an input folder is not searched. `records` tell earlier results.
    """
    found, records = Found(), records or Records()
    for path in inputs:
        if is_folder(path):
            _search(path, recursive, output, found, records)
        else:
            found.sources.append(Source(path))
    first: dict[Path, Source] = {}
    for source in found.sources:
        first.setdefault(source.path.absolute(), source)
    found.sources = list(first.values())
    return found


def output_is_folder(output: Path, inputs: Sequence[Path]) -> bool:
    """Whether -o names a folder: it is one, several inputs go there, or it has no suffix.

    Raises:
        UsageError: one file for several inputs, or a suffix that cannot be written.
    """
    if is_folder(output):
        return True
    if len(inputs) > 1 or is_folder(inputs[0]):
        if os.path.lexists(output) or output.suffix.lower() in FORMAT_OF_SUFFIX:
            raise UsageError(f"-o {output} is one file, but there are several inputs", hint="-o FOLDER")
        return True
    if output.suffix:
        output_format(output)
    return not output.suffix


def name_output(
    source: Source, header: Header, label: str, folder: Path | None, suffix: str | None = None
) -> tuple[Path, str | None]:
    """NAME_x8.EXT for NAME.EXT and label "x8", beside the input or below `folder`, and a note if EXT changed.

    EXT is the input's own if that is one of its format's; it becomes .png where the format knows no
    transparency and the picture has it; with `suffix`, it is that.
    """
    if suffix is not None:
        return _placed(source, f"{source.path.stem}_{label}{suffix}", folder), None
    suffix, note = fitting_suffix(header)
    return _placed(source, f"{source.path.stem}_{label}{suffix}", folder), note


def fitting_suffix(header: Header) -> tuple[str, str | None]:
    """Of the result of a picture, by what is in the file and not by its name; and a note if it is another."""
    own, kind = header.path.suffix, header.format
    if header.has_alpha and not FORMATS[kind].alpha:
        return ".png", f"{kind} cannot hold transparency: writing PNG"
    if FORMAT_OF_SUFFIX.get(own.lower()) == kind:
        return own, None
    note = f"the file is in the format {kind} in spite of its name: writing {kind}"
    return FORMATS[kind].suffixes[0], note if own.lower() in FORMAT_OF_SUFFIX else None


def free_name(target: Path, taken: Container[str]) -> Path:
    """`target`, or NAME_1.EXT, NAME_2.EXT, ... if a file of that name exists or its identity is taken."""
    numbered = (target.with_stem(f"{target.stem}_{number}") for number in count(1))
    return next(
        path
        for path in chain([target], numbered)
        if not os.path.lexists(path) and identity(path) not in taken
    )


def find_collisions(pairs: Iterable[tuple[Path, Path]], inputs: Iterable[Path]) -> dict[Path, UsageError]:
    """The inputs of those (input, output) pairs whose output would replace one of `inputs`, or is another's.

    Nobody could say which of two is meant, so both are refused.
    """
    read = {identity(source): source for source in inputs}
    writers: dict[str, list[Path]] = {}
    refused = {}
    for source, target in pairs:
        place = identity(target)
        writers.setdefault(place, []).append(source)
        if place in read:
            refused[source] = UsageError(
                f"the output of {source} would replace the input {read[place]}", hint="-o FOLDER"
            )
        elif len(writers[place]) > 1:
            first, *_ = writers[place]
            said = f"{first} and {source} would both be written to {target}"
            error = UsageError(said, hint="--on-exists rename, or another -o for one of them")
            refused.setdefault(first, error)
            refused[source] = error
    return refused


def make_folders(targets: Iterable[Path]) -> tuple[dict[Path, OutputError], int]:
    """Try that outputs can be written where they are to go; makes missing folders.

    What killed runs left unfinished there is removed. Returns what is wrong, by folder, and the number of
    such files.
    """
    refused, swept = {}, 0
    for folder in dict.fromkeys(target.parent for target in targets):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=os.path.realpath(folder)):
                pass
            swept += sweep(folder)
        except OSError as error:
            reason = error.strerror or error
            refused[folder] = OutputError(f"cannot write to the folder {folder}: {reason}")
    return refused, swept


def check_name(target: Path) -> None:
    """Raise OutputError if no file can have that name: it is too long, or a folder's."""
    try:
        os.lstat(target)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}", hint="-o FILE") from error
    if target.is_dir():
        raise OutputError(f"cannot write {target}: a folder has that name")


def is_folder(path: Path) -> bool:
    """Whether it is one; no too where the system cannot tell, such as for a name that is too long."""
    try:
        return path.is_dir()
    except OSError:
        return False


def identity(path: Path) -> str:
    """The same for every way to name a file."""
    return os.path.normcase(os.path.realpath(path))


def _placed(source: Source, name: str, folder: Path | None) -> Path:
    """Beside the input, or in the same place below `folder`."""
    if folder is None:
        return source.path.with_name(name)
    below = source.path.parent.relative_to(source.folder) if source.folder else Path()
    return folder / below / name


def _search(folder: Path, recursive: bool, output: Path | None, found: Found, records: Records) -> None:
    before = len(found.sources) + len(found.unreadable)
    excluded = None if output is None else os.path.realpath(output)

    def unreadable(error: OSError) -> None:
        path, reason = Path(error.filename), error.strerror or error
        found.unreadable.append((path, InputError(f"{path}: the folder cannot be read: {reason}")))

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        below = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [n for n in below if recursive and os.path.realpath(Path(parent, n)) != excluded]
        visible = sorted(name for name in names if not name.startswith("."))
        _take(Path(parent), folder, visible, found, records)
    if len(found.sources) + len(found.unreadable) == before:
        hint = None if recursive else "-r to search its subfolders too"
        found.unreadable.append((folder, InputError(f"{folder}: no picture in this folder", hint=hint)))


def _take(parent: Path, folder: Path, names: list[str], found: Found, records: Records) -> None:
    pictures = [name for name in names if Path(name).suffix.lower() in PICTURE_SUFFIXES]
    others = [name for name in names if Path(name).suffix.lower() not in PICTURE_SUFFIXES]
    results = records[parent].made_beside(set(pictures))
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
