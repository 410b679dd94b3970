"""Jobs: one picture each, from its upload to the end of its result; and the place where their files are."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tudsr_runtime.batch.job import Job as Planned
from tudsr_runtime.batch.job import Request
from tudsr_runtime.errors import TudsrError
from tudsr_runtime.files import lock
from tudsr_runtime.upscaler import Upscaler
from tudsr_serve.errors import Cancelled, DeadlinePassed, NotHere, renamed

State = Literal["waiting", "running", "done", "failed", "cancelled"]
Side = Literal["before", "after"]

PREFIX = "tudsr-serve-"
LOCK = "lock"
ABANDONED_SECONDS = 60.0
"""A job whose events were watched is given up once nobody has asked about it for this time."""

MOST_KEPT = 256
"""Jobs that are over and still known."""

YOUNG_SECONDS = 60
"""A folder without a lock that is younger than this may belong to a server that is about to lock it."""


@dataclass(eq=False)
class Job:
    """One picture of a client. Its methods may be called from any thread, `changes` from the event loop.

    `shown` is the client's name of the picture; `planned` has the paths, below `folder`. Times are those of
    `time.monotonic`, in s. `previews`: whether to make them of what browsers do not show.
    """

    shown: str
    folder: Path
    planned: Planned
    request: Request
    upscaler: Upscaler
    deadline: float
    loop: asyncio.AbstractEventLoop
    id: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    previews: bool = False
    state: State = "waiting"
    tiles_done: int = 0
    notes: tuple[str, ...] = ()
    error: BaseException | None = None
    began: float | None = None
    ended: float | None = None
    _left: float | None = None
    _given_up: threading.Event = field(default_factory=threading.Event)
    _watchers: set[asyncio.Event] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def over(self) -> bool:
        """Whether nothing changes any more."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def result(self) -> Path:
        """The file of the result, once there is one."""
        return self.planned.target

    def preview(self, side: Side) -> Path:
        """The file of a preview, which need not be there."""
        return self.folder / f"preview_{side}.png"

    @property
    def result_name(self) -> str:
        """The name that the command would have given it beside the client's file."""
        label = self.result.stem.removeprefix(self.planned.source.stem)
        return f"{Path(self.shown).stem}{label}{self.result.suffix}"

    @property
    def seconds(self) -> float | None:
        """Time at work so far, or in all."""
        return None if self.began is None else (self.ended or time.monotonic()) - self.began

    def begin(self) -> bool:
        """Whether the job is to be run; then it is running."""
        with self._lock:
            if self.over:
                return False
            self.state, self.began = "running", time.monotonic()
        self._tell()
        return True

    def tile(self, done: int, _total: int) -> None:
        """Count a tile; for `upscale_rows`. Raises what ends a job that is not to go on."""
        self.check()
        self.tiles_done = done
        self._tell()

    def check(self) -> None:
        """Raise Cancelled or DeadlinePassed if the job is not to go on."""
        if self._given_up.is_set():
            raise Cancelled("the picture was given up")
        if time.monotonic() > self.deadline:
            raise DeadlinePassed("the picture took longer than the server's deadline", hint="a smaller scale")

    def finish(self, notes: tuple[str, ...]) -> None:
        """Note that the result is there, with notes on what was lost."""
        self.notes += notes
        self._end("done")

    def fail(self, error: BaseException) -> None:
        """Note that there will be no result, and why."""
        names = {str(self.planned.source): self.shown, str(self.result): self.result_name}
        self.error = renamed(error, names) if isinstance(error, TudsrError) else error
        self._end("failed")

    def cancel(self) -> None:
        """Give it up: at once if it waits, after the tile at work if it runs."""
        with self._lock:
            self._given_up.set()
            waiting = self.state == "waiting"
        if waiting:
            self.fail(Cancelled("the picture was given up"))

    async def changes(self, heartbeat: float) -> AsyncIterator[bool]:
        """Yield True at once and after each change, False after `heartbeat` s without; end with the job."""
        event = asyncio.Event()
        self._watchers.add(event)
        self._left = None
        try:
            changed = True
            while True:
                yield changed
                if self.over:
                    return
                changed = await _within(event, heartbeat)
                event.clear()
        finally:
            self._watchers.discard(event)
            self._left = None if self._watchers else time.monotonic()

    def asked_about(self) -> None:
        """Note that somebody is still there, for `abandoned`."""
        self._left = None if self._left is None else time.monotonic()

    @property
    def abandoned(self) -> bool:
        """Whether whoever watched it seems to have gone."""
        return self._left is not None and time.monotonic() - self._left > ABANDONED_SECONDS

    async def wait(self) -> None:
        """Wait until it is over."""
        async for _ in self.changes(60):
            pass

    def _end(self, state: State) -> None:
        with self._lock:
            if self.over:
                return
            # Whoever gave it up has looked for files before the result came.
            state = "cancelled" if self._given_up.is_set() else state
            self.state, self.ended = state, time.monotonic()
        if state != "done":
            shutil.rmtree(self.folder, ignore_errors=True)
        self._tell()

    def _tell(self) -> None:
        # The loop is closed when the server has stopped, and nobody watches any more.
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for event in self._watchers:
            event.set()


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


class Jobs:
    """Those that clients may ask for, by their ids, which nobody can guess. For the event loop alone.

    Args:
        keep: seconds after its end that a job is known and its result kept.
        max_bytes: of all files below `folder`; of results the oldest go first.
    """

    def __init__(self, keep: float, max_bytes: int) -> None:
        self.keep, self.max_bytes = keep, max_bytes
        self._jobs: dict[str, Job] = {}

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self._jobs.values()))

    def __getitem__(self, identity: str) -> Job:
        """The job of that id. Raises NotHere."""
        found = self._jobs.get(identity)
        if found is None:
            raise NotHere("there is no such job, or its result has been removed")
        return found

    def add(self, job: Job) -> None:
        """Let clients ask for a job."""
        self._jobs[job.id] = job

    def remove(self, job: Job) -> None:
        """Forget a job and its files; one that is not over is given up."""
        job.cancel()
        self._jobs.pop(job.id, None)
        if job.over:
            shutil.rmtree(job.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what is too old, and then the oldest results until the others are within `max_bytes`."""
        now = time.monotonic()
        for job in self:
            if job.abandoned and not job.over:
                self.remove(job)
            elif job.state == "waiting" and now > job.deadline:
                job.fail(DeadlinePassed("the picture waited longer than the server's deadline", hint="later"))
        over = sorted((job for job in self if job.over), key=lambda job: job.ended or now)
        for job in over:
            if now - (job.ended or now) > self.keep:
                self.remove(job)
        kept = [job for job in over if job.id in self._jobs]
        while kept and (len(kept) > MOST_KEPT or self.bytes() > self.max_bytes):
            self.remove(kept.pop(0))

    def bytes(self) -> int:
        """Bytes of all their files."""
        return sum(_bytes(job.folder) for job in self)


def _bytes(folder: Path) -> int:
    total = 0
    with suppress(OSError):
        for entry in os.scandir(folder):
            with suppress(OSError):
                total += entry.stat().st_size
    return total


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for one server's files, for this user alone, removed at the end; those that servers which
    were killed have left are removed now.
    """
    sweep_killed(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with suppress(OSError):
            lock(handle)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep_killed(parent: Path) -> int:
    """Remove the folders of servers that no longer run, and are this user's; their number."""
    removed = 0
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if _is_ours(folder) and not _is_used(folder):
                shutil.rmtree(folder)
                removed += 1
    return removed


def _is_ours(folder: Path) -> bool:
    found = folder.lstat()
    mine = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    return mine and folder.is_dir() and not folder.is_symlink()


def _is_used(folder: Path) -> bool:
    """Whether its lock is held, or it is too young to have one. Raises OSError."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime < YOUNG_SECONDS
    try:
        return not lock(handle)
    finally:
        os.close(handle)
