"""Where the results of `tudsr upscale` go: named, told apart, and tried before anything is computed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Container, Iterable, Sequence
from itertools import chain, count
from pathlib import Path

from tudsr_runtime.atomic import other_names, sweep
from tudsr_runtime.batch.inputs import Source, is_folder
from tudsr_runtime.errors import OutputError, UsageError
from tudsr_runtime.pictures.formats import FORMAT_OF_SUFFIX, FORMATS
from tudsr_runtime.pictures.read import Header
from tudsr_runtime.pictures.write import output_format


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
    """NAME_x8.EXT for NAME.EXT and label "x8", and a note if EXT changed.

    It lies beside the input, or below `folder` where the input lies below its own. EXT is the input's own
    if that is one of its format's; it becomes .png where the format knows no transparency and the picture
    has it; with `suffix`, it is that.
    """
    suffix, note = fitting_suffix(header) if suffix is None else (suffix, None)
    name = f"{source.path.stem}_{label}{suffix}"
    if folder is None:
        return source.path.with_name(name), note
    below = source.path.parent.relative_to(source.folder) if source.folder else Path()
    return folder / below / name, note


def fitting_suffix(header: Header) -> tuple[str, str | None]:
    """The suffix of a result, by the content of the input and not by its name; and a note if they differ."""
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


def links_note(target: Path) -> tuple[str, ...]:
    """A note where an output that is to be replaced has other names, which keep what is in it."""
    links = other_names(target)
    return (f"its other names (hard links: {links}) keep the old picture",) if links > 0 else ()


def identity(path: Path) -> str:
    """A text that is the same for every way to name a file."""
    return os.path.normcase(os.path.realpath(path))
