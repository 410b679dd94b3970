"""One thread that works through the jobs in the order in which they came; the queue has an end."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import deque
from collections.abc import Callable

from tudsr_runtime.batch.estimate import goes_by_columns, host_bytes
from tudsr_runtime.errors import MemoryExhausted
from tudsr_runtime.machine import require_memory
from tudsr_runtime.pictures.write import check_transparency, write_picture
from tudsr_runtime.upscaler import Upscaler
from tudsr_serve.errors import Busy, Full
from tudsr_serve.jobs import Job
from tudsr_serve.preview import Previews

RECENT = 8
"""Jobs whose mean time is taken for that of the next."""


class Worker:
    """Runs jobs, one at a time, between `start` and `stop`.

    Args:
        places: how many may wait.
        ended: called with each job when it has ended, in the worker's thread.
    """

    def __init__(self, places: int, ended: Callable[[Job], None] = lambda _: None) -> None:
        self.places = places
        self._ended = ended
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._stopped = False
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._engines_of: Upscaler | None = None
        self._thread = threading.Thread(target=self._work, name="tudsr-serve", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether jobs are run."""
        return self._thread.is_alive()

    @property
    def running(self) -> bool:
        """Whether a job is at work."""
        return self._running is not None

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        with self._changed:
            while self._waiting and self._waiting[0].over:
                self._waiting.popleft()
            return sum(not job.over for job in self._waiting)

    def start(self) -> None:
        """Begin to run jobs."""
        self._thread.start()

    def stop(self) -> None:
        """Give up all jobs and release the engines; returns when the tile at work is done."""
        with self._changed:
            self._stopped = True
            jobs = [*self._waiting, *filter(None, [self._running])]
            self._changed.notify()
        for job in jobs:
            job.cancel()
        if self._thread.ident is not None:
            self._thread.join()

    def check_room(self) -> None:
        """Raises Busy if no job can be taken now, Full if none will be."""
        with self._changed:
            if self._stopped:
                raise Full("the server is stopping", retry_after=10)
            waiting = self.waiting
            if waiting >= self.places:
                mean = sum(self._recent) / len(self._recent) if self._recent else 10.0
                after = min(max(1, math.ceil(mean)), 600)
                raise Busy(f"{waiting} pictures are waiting already", hint="later", retry_after=after)

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn. Raises as `check_room`."""
        with self._changed:
            self.check_room()
            self._waiting.append(job)
            self._changed.notify()

    def ahead(self, job: Job) -> int:
        """How many jobs come before it, the running one included."""
        with self._changed:
            before = list(self._waiting)
            if job not in before:
                return 0
            return self.running + sum(not one.over for one in before[: before.index(job)])

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                if job.begin():
                    self._run(job)
            finally:
                self._running = None
                self._ended(job)
        if self._engines_of is not None:
            self._engines_of.close()

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            if self._stopped:
                return None
            self._running = self._waiting.popleft()
            return self._running

    def _run(self, job: Job) -> None:
        try:
            self._hold_engines_of(job.upscaler)
            job.finish(enlarge(job))
            self._recent.append(job.seconds or 0)
        except MemoryError:
            job.fail(MemoryExhausted(f"{job.shown}: out of memory", hint="a smaller scale"))
        except Exception as error:  # whatever it is, the others go on
            job.fail(error)

    def _hold_engines_of(self, upscaler: Upscaler) -> None:
        """Release another bundle's engines: only one's are in memory at a time."""
        held = self._engines_of
        if held is not None and held.bundle is not upscaler.bundle:
            held.close()
        self._engines_of = upscaler


def enlarge(job: Job) -> tuple[str, ...]:
    """Read, enlarge and write one picture, as `tudsr upscale` does; notes on what was lost.

    Raises:
        Cancelled, DeadlinePassed. And all else that is wrong with a picture.
    """
    planned, request = job.planned, job.request
    plan, target = planned.plan, planned.target
    job.check()
    size = plan.output_width, plan.output_height
    needed = host_bytes(plan, planned.header, target, job.upscaler.color)
    require_memory(needed, f"{job.shown}: {size[0]} x {size[1]} px")
    decoded, _ = planned.read(request.options.metadata)
    picture = dataclasses.replace(decoded, wrap=job.upscaler.wrap)
    check_transparency(picture, target)
    previews = Previews(job, picture)
    turned = goes_by_columns(plan, planned.header, target)

    def attempt() -> tuple[str, ...]:
        job.check()
        bands = job.upscaler.upscale_rows(
            picture.levels, None, plan.notation, job.tile, size=size, by_columns=turned
        )
        passing = previews.passing(bands, size, turned)
        return write_picture(picture, passing, *size, target, request.encoding, by_columns=turned)

    notes = (*planned.notes, *picture.notes, *job.upscaler.with_smaller_tiles(attempt))
    planned.source.unlink()
    return *notes, *previews.write(turned)
