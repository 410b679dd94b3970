"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tudsr_runtime.errors import OutputError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a seekable binary file that becomes `path` when the block ends without an error.

    The bytes go to a temporary file in the same folder, are flushed to disk and renamed over `path`; on any
    error (Ctrl-C included) the temporary file is removed and `path` stays as it was. A link is followed.

    Raises:
        OutputError: the system refused (no such folder, no permission, disk full), or `path` is no file.
    """
    target = Path(os.path.realpath(path))
    partial = _sibling(target)
    with _as_output_error(path):
        # Replacing a device such as /dev/null, or a folder, is never what was meant.
        if target.exists() and not target.is_file():
            raise OutputError(f"cannot write {path}: it exists and is not a plain file")
        try:
            with open(partial, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
            _sync_folder(target.parent)
        finally:
            with suppress(OSError):
                partial.unlink()


@contextmanager
def atomic_dir(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends without an error.

    Everything below it is flushed to disk first. With `overwrite`, a folder that is already there is moved
    aside, then removed once the new one is in place; without it, an existing `path` is an error at once.

    Raises:
        OutputError: `path` exists (and `overwrite` is false, or it is no folder), or the system refused.
    """
    target = Path(os.path.realpath(path))
    partial = _sibling(target)
    with _as_output_error(path):
        _refuse_existing(path, target, overwrite)
        try:
            partial.mkdir()
            yield partial
            _sync_tree(partial)
            _refuse_existing(path, target, overwrite)
            _swap_folder(partial, target)
            _sync_folder(target.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _sibling(target: Path) -> Path:
    return target.with_name(f".tudsr-{secrets.token_hex(8)}.tmp")


def _refuse_existing(path: Path, target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise OutputError(f"{path} already exists", hint="choose another folder, or allow overwriting")
    if not target.is_dir():
        raise OutputError(f"cannot write the folder {path}: a file of that name exists")


def _swap_folder(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; a folder in the way survives if that fails."""
    if not target.exists():
        partial.replace(target)
        return
    aside = _sibling(target)
    target.replace(aside)
    try:
        partial.replace(target)
    except OSError:
        aside.replace(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            # Windows can only flush a file that is open for writing.
            with open(Path(parent, name), "r+b") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows offers no such call for folders."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
