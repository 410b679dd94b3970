"""Runs on one folder at once share the work: each claims what it is at work on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tudsr_runtime.atomic import CLAIM
from tudsr_runtime.files import lock


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether this process alone is at work on `path`, until the block ends; false if another one is.

    A file beside it is locked, so that a process that is killed gives up its claims. True too where a file
    system knows no locks: then `atomic_write` alone keeps the results of two processes apart.
    """
    mark = _mark_of(Path(os.path.realpath(path)))
    try:
        handle = _claim_on_windows(mark) if os.name == "nt" else _claim_by_lock(mark)
    except BlockingIOError:
        yield False
        return
    except OSError:
        yield True
        return
    try:
        yield True
    finally:
        _release(handle, mark)


def is_claimed(path: Path) -> bool:
    """Whether a process is at work on `path`, or was killed at it."""
    return os.path.lexists(_mark_of(path))


def _mark_of(target: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.normcase(target.name))).hexdigest()[:16]
    return target.with_name(f".tudsr-{name}{CLAIM}")


def _claim_by_lock(mark: Path) -> int:
    """A handle that holds the lock of the file. Raises BlockingIOError if another one does, OSError."""
    while True:
        handle = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        try:
            locked = lock(handle)
            if locked and _is_at(handle, mark):
                return handle
        except OSError:
            os.close(handle)
            # No locks here, so nobody could tell later whether the file means anything.
            with suppress(OSError):
                mark.unlink()
            raise
        os.close(handle)
        if not locked:
            raise BlockingIOError(f"{mark} is locked")


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file still has that name: the one that had the lock before may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def _claim_on_windows(mark: Path) -> int:
    """A handle of the file, which nobody can remove while it is open. Raises BlockingIOError if it is."""
    try:
        with suppress(FileNotFoundError):
            mark.unlink()
        return os.open(mark, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    except (FileExistsError, PermissionError) as error:
        raise BlockingIOError(str(error)) from error


def _release(handle: int, mark: Path) -> None:
    if os.name == "nt":
        os.close(handle)
        with suppress(OSError):
            mark.unlink()
        return
    # Before it is unlocked: whoever waits for the lock must find that the file is gone.
    with suppress(OSError):
        mark.unlink()
    os.close(handle)
