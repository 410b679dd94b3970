"""A lock between processes, held on an open file: it ends with the process that holds it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tudsr_runtime.errors import OutputError

POLL_SECONDS = 0.2


@contextmanager
def exclusive(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path`, which stays behind; `waiting` is called once if another process has it.

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


def _acquire(handle: int, path: Path, waiting: Callable[[], None]) -> None:
    told = False
    while not _try(handle, path):
        if not told:
            waiting()
            told = True
        time.sleep(POLL_SECONDS)


def _try(handle: int, path: Path) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise OutputError(f"cannot lock {path}: {error.strerror or error}") from error
    return True
