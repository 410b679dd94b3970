"""Folders, hashes and locks: what several packages do with files, besides writing them (`atomic.py`)."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tudsr_runtime.errors import OutputError

POLL_SECONDS = 0.2


def file_sha256(path: Path) -> str:
    """Lower-case hexadecimal SHA-256 of a file's bytes. Raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path, private: bool = False) -> None:
    """Make the folder and those above it, where they are not; `private`: for this user only.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where the file system has no hard links.

    Raises OSError.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def cache_folder() -> Path:
    """The folder of `TUDSR_CACHE`, else `tudsr` in the user's cache folder. It need not exist yet."""
    named = os.environ.get("TUDSR_CACHE")
    return Path(named).absolute() if named else _user_cache() / "tudsr"


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    # The XDG specification ignores a relative path.
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"


@contextmanager
def exclusive(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path`, which stays behind; `waiting` is called once if another process has it.

    The lock is held on the open file, so that it ends with the process that holds it.

    Raises:
        OutputError: the file cannot be made or locked.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        _acquire(handle, path, waiting)
        yield
    finally:
        os.close(handle)


def lock(handle: int, wait: bool = False) -> bool:
    """Lock an open file until it is closed; false if another process has it, unless that is waited for.

    Raises:
        OSError: the file system knows no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _acquire(handle: int, path: Path, waiting: Callable[[], None]) -> None:
    told = False
    while not _try(handle, path):
        if not told:
            waiting()
            told = True
        time.sleep(POLL_SECONDS)


def _try(handle: int, path: Path) -> bool:
    try:
        return lock(handle)
    except OSError as error:
        raise OutputError(f"cannot lock {path}: {error.strerror or error}") from error
