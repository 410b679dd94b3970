"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tudsr_runtime.errors import OutputError, UsageError
from tudsr_runtime.files import lock

CLAIM = ".claim"
"""Suffix of the file that says that a process is at work on a result."""

OLD = ".old"
"""Suffix of a folder that has been moved aside for a new one; its name holds what it was called."""

ACL = "system.posix_acl_access"

_unfinished: set[Path] = set()
"""Temporary files and folders of this process."""


class AppearedError(UsageError):
    """The output did not exist when it was begun, and does now."""


@contextmanager
def atomic_write(path: Path, replace: bool = True) -> Iterator[BinaryIO]:
    """Yield a seekable binary file that becomes `path` when the block ends without an error.

    The bytes go to a temporary file in the same folder, are flushed to disk and renamed over `path`; on any
    error (Ctrl-C included) the temporary file is removed and `path` stays as it was. A link is followed; what
    is replaced passes on its mode, and its owner and group where the system allows it. Other names of it
    (hard links) keep the old content. Without `replace`, a `path` that has appeared by then is left alone,
    even if it came at the last moment.

    Raises:
        OutputError: the system refused (no such folder, no permission, disk full), or `path` is no file.
        AppearedError: `path` exists in the end and `replace` is false.
    """
    target = Path(os.path.realpath(path))
    partial = _sibling(target)
    with _as_output_error(path):
        # Nobody wants a device such as /dev/null, or a folder, to be replaced.
        if target.exists() and not target.is_file():
            raise OutputError(f"cannot write {path}: it exists and is not a plain file")
        replaced = target if replace and target.exists() else None
        _unfinished.add(partial)
        try:
            # Nobody who may not read the old content shall read the new one while it is written.
            with _create_locked(partial, 0o600 if replaced else 0o666) as file:
                yield file
                file.flush()
                if replaced:
                    pass_on_access(replaced, partial)
                os.fsync(file.fileno())
            _publish(partial, target, replace)
            _sync_folder(target.parent)
        finally:
            with suppress(OSError):
                partial.unlink()
            _unfinished.discard(partial)


@contextmanager
def atomic_dir(path: Path, overwrite: bool = False, own: str = "") -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends without an error.

    Everything below it is flushed to disk first. With `overwrite`, a folder that is already there is moved
    aside, then removed once the new one is in place; without it, an existing `path` is an error at once.
    What killed processes left beside `path` is cleared up first (`sweep_folders`).

    Args:
        own: as in `require_replaceable`; "" where the caller knows what is there.

    Raises:
        OutputError: `path` exists (and `overwrite` is false, or it is no folder or no earlier result), or the
            system refused.
    """
    target = Path(os.path.realpath(path))
    partial = _sibling(target)
    with _as_output_error(path):
        sweep_folders(target.parent)
        _refuse_existing(path, target, overwrite, own)
        with _claimed(partial):
            _unfinished.add(partial)
            try:
                partial.mkdir(0o700 if target.exists() else 0o777)
                yield partial
                if target.exists():
                    pass_on_access(target, partial)
                _sync_tree(partial)
                _refuse_existing(path, target, overwrite, own)
                _swap_folder(partial, target)
                _sync_folder(target.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                _unfinished.discard(partial)


def require_replaceable(path: Path, own: str) -> None:
    """Refuse to replace what is no earlier result: a mistyped folder would be lost with all that it holds.

    Args:
        own: a file that every result has; an empty folder may be replaced too.

    Raises:
        OutputError: `path` is a file, or a folder that holds something, but not `own`.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"cannot write the folder {path}: a file of that name exists")
    if path.is_dir() and not (path / own).is_file() and any(path.iterdir()):
        raise OutputError(
            f"{path} holds files, and is no earlier result ({own} is missing); it is not replaced",
            hint="another folder",
        )


def remove_unfinished() -> None:
    """Remove the temporary files and folders of this process, which is about to end at once."""
    for path in tuple(_unfinished):
        with suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def sweep(folder: Path) -> int:
    """Remove what killed processes left unfinished in `folder`; the number of files.

    A file that a living process still writes is locked by it and stays.
    """
    removed = 0
    for path in folder.glob(".tudsr-*"):
        with suppress(OSError):
            if path.suffix in (".tmp", CLAIM) and path.is_file() and _is_abandoned(path):
                path.unlink()
                removed += path.suffix != CLAIM
    return removed


def sweep_folders(folder: Path) -> None:
    """Remove the unfinished folders that killed processes left in `folder`, and put back what one of them had
    moved aside and not replaced yet. Those of living processes stay."""
    for path in folder.glob(".tudsr-*"):
        with suppress(OSError):
            if path.suffix in (".tmp", OLD) and path.is_dir() and _has_no_claim(path):
                _clear_up(path)


def _clear_up(path: Path) -> None:
    replaced = path.with_name(path.stem.split(".", 2)[-1])
    if path.suffix == OLD and not replaced.exists():
        path.replace(replaced)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _has_no_claim(path: Path) -> bool:
    mark = _mark(path)
    if mark.is_file() and not _is_abandoned(mark):
        return False
    mark.unlink(missing_ok=True)
    return True


def _mark(path: Path) -> Path:
    """The file that is locked while a process works on the folder `path`; not everywhere can a folder be."""
    return path.with_name(".".join(path.name.split(".")[:2]) + CLAIM)


@contextmanager
def _claimed(partial: Path) -> Iterator[None]:
    mark = _mark(partial)
    try:
        with _create_locked(mark, 0o600):
            yield
    finally:
        with suppress(OSError):
            mark.unlink()


def pass_on_access(old: Path, new: Path) -> None:
    """Give `new` the mode of `old`, its owner and group where that is allowed, and on Linux its ACL.

    A group that cannot be kept does not leave its rights to another one.
    """
    if os.name == "nt" or not old.exists():
        return
    status = old.stat()
    for owner, group in ((status.st_uid, -1), (-1, status.st_gid)):
        with suppress(OSError):
            os.chown(new, owner, group)
    same_group = new.stat().st_gid == status.st_gid
    # File systems that know no modes refuse to set one.
    with suppress(OSError):
        new.chmod(_mode(status.st_mode, same_group))
    if sys.platform == "linux" and same_group:
        with suppress(OSError):
            os.setxattr(new, ACL, os.getxattr(old, ACL))


def other_names(path: Path) -> int:
    """How many hard links to the file there are besides `path`; 0 if it does not exist."""
    try:
        return path.stat().st_nlink - 1
    except OSError:
        return 0


@contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _create_locked(path: Path, mode: int) -> BinaryIO:
    """Create the file and lock it as long as it is open, so that `sweep` leaves it alone."""
    while True:
        file = open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode))  # noqa: SIM115
        try:
            _lock(file, wait=True)
            # Between the two lines above, the sweep of another process may have taken it for abandoned.
            if path.exists():
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_abandoned(path: Path) -> bool:
    with open(path, "rb") as file:
        return _lock(file, wait=False)


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Lock the file until it is closed; false if another process has, or the file system knows no locks.

    Windows lets nobody remove a file that is open, which is all that the lock is for.
    """
    with suppress(OSError):
        return os.name == "nt" or lock(file.fileno(), wait)
    return False


def _mode(old: int, same_group: bool) -> int:
    # Of a folder, all; but no program becomes one that runs as another user.
    mode = old & (0o7777 if stat.S_ISDIR(old) else 0o777)
    return mode if same_group else mode & ~0o070 | (mode & 0o007) << 3


def _publish(partial: Path, target: Path, replace: bool) -> None:
    if replace:
        partial.replace(target)
        return
    try:
        os.link(partial, target)
    except FileExistsError:
        raise AppearedError(f"{target} has appeared in the meantime", hint="the same command again") from None
    except OSError:
        # A file system without hard links.
        if target.exists():
            raise AppearedError(f"{target} has appeared in the meantime") from None
        partial.rename(target)


def _sibling(target: Path) -> Path:
    return target.with_name(f".tudsr-{secrets.token_hex(8)}.tmp")


def _refuse_existing(path: Path, target: Path, overwrite: bool, own: str) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise OutputError(f"{path} already exists", hint="choose another folder, or allow overwriting")
    if not target.is_dir():
        raise OutputError(f"cannot write the folder {path}: a file of that name exists")
    if own:
        require_replaceable(target, own)


def _swap_folder(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; a folder in the way survives if that fails."""
    if not target.exists():
        partial.replace(target)
        return
    aside = partial.with_name(f"{partial.stem}.{target.name}{OLD}")
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
