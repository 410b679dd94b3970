"""One run of `tudsr upscale`: plan every picture, settle every output, then work through them.

Nothing is computed before all inputs are looked at (headers only), all outputs are known to be distinct and
their folders to be writable. A picture that fails never stops the others.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tudsr_runtime.atomic import AppearedError
from tudsr_runtime.batch.claim import claim
from tudsr_runtime.batch.done import Records
from tudsr_runtime.batch.estimate import Estimator, goes_by_columns, host_bytes
from tudsr_runtime.batch.inputs import Source
from tudsr_runtime.batch.job import Job, Request, outline, plan_job, weighed_record, weighing
from tudsr_runtime.batch.outputs import (
    check_name,
    find_collisions,
    free_name,
    identity,
    links_note,
    make_folders,
)
from tudsr_runtime.errors import BatchError, MemoryExhausted, OutputError, TudsrError, UsageError
from tudsr_runtime.machine import as_exhausted, require_memory
from tudsr_runtime.pictures.picture import Picture
from tudsr_runtime.pictures.write import check_transparency, write_picture
from tudsr_runtime.planes import FloatArray
from tudsr_runtime.terminal import ProgressBar, Terminal, clock, counted, failure, mark_told
from tudsr_runtime.tiling.plan import Plan
from tudsr_runtime.upscaler import Upscaler

MAX_REFUSALS = 2
"""Outputs in a row that the system may refuse (disk full) before the rest is not tried any more."""


@dataclass
class Tally:
    """How the pictures of a run went."""

    ok: int = 0
    failed: int = 0
    skipped: int = 0
    planned: int = 0


@dataclass
class Batch:
    """The state of one run."""

    request: Request
    upscaler: Upscaler
    terminal: Terminal
    records: Records = field(default_factory=Records)
    provide: Callable[[Iterable[Plan]], object] = lambda _: None
    """Called with what is going to be computed, before that is begun; makes what the engines need."""
    sizes: Callable[[Plan], Iterable[str]] = lambda _: ()
    """What to say, before anything is computed, about disk and memory of what was weighed."""
    tally: Tally = field(default_factory=Tally)
    on_result: Callable[[Path, Path], None] = lambda *_: None
    """Told of every input and its result, those of an earlier run too."""
    gave_up: bool = False
    """Whether outputs were refused so often that the rest was not tried."""
    stopped: bool = False
    """Whether a signal came while there was something to do."""
    _taken: set[str] = field(default_factory=set)
    _writes: bool = False

    def plan(
        self, sources: Sequence[Source], elsewhere: Sequence[Source] = (), *, create_folders: bool
    ) -> list[Job]:
        """The jobs that are to be done; the others are reported as failed or skipped.

        Args:
            elsewhere: pictures that are not to be done here, nor to be replaced by a result.

        Raises:
            OutputError: no folder of the outputs can be written to.
            TudsrError: what is wrong with the one input, or its output.
        """
        self._writes = create_folders
        jobs = []
        for source in sources:
            try:
                jobs.append(plan_job(self.request, self.upscaler, source))
            except Exception as error:  # whatever it is, the others go on
                self.fail(source.path, error)
        jobs = self._settle(jobs, [source.path for source in (*sources, *elsewhere)])
        return self._prepare(jobs) if create_folders else jobs

    def show(self, jobs: Sequence[Job]) -> None:
        """Print what would be done, how long it would take and how much memory, after trying the engines."""
        estimator = Estimator(self.upscaler)
        for job in jobs:
            self.tally.planned += 1
            plan = job.plan
            for choice in (*weighing(plan), *self.sizes(plan)):
                self.terminal.detail(f"{job.source}: {choice}")
            seconds = estimator.seconds(plan)
            memory = host_bytes(plan, job.header, job.target, self.upscaler.color)
            takes = f"about {clock(seconds)} and {memory / 1e6:.0f} MB beside the engines"
            line = f"{job.source} -> {job.target}: {outline(plan)}; {takes}"
            estimate = {"seconds": round(seconds, 3), "host_bytes": memory}
            weighed = weighed_record(plan)
            self._report(job, "planned", line, job.notes, estimate=estimate, weighed=weighed)

    def run(self, jobs: Sequence[Job]) -> None:
        """Work through the jobs. Raises TudsrError only for a single input, or if nothing can be computed."""
        before = self.tally.ok
        self.provide([job.plan for job in jobs])
        try:
            self._run_all(jobs)
        except (KeyboardInterrupt, SystemExit):
            self.stopped = True
            if not self.request.single:
                done = f"{self.tally.ok} of {before + len(jobs)} done"
                self.terminal.note(f"stopped, {done}; the same command goes on with the others")
            raise

    def _run_all(self, jobs: Sequence[Job]) -> None:
        with self.terminal.progress(sum(job.plan.tiles for job in jobs)) as bar:
            claimed = self._round(jobs, bar)
            # By now the other run has finished them, or was killed.
            for job in self._round(claimed, bar):
                self._skip(job, job.target, "is being made by another run")

    def _round(self, jobs: Sequence[Job], bar: ProgressBar) -> list[Job]:
        """Try each job once; those that another run is at work on."""
        refusals, claimed = 0, []
        for number, job in enumerate(jobs, 1):
            bar.begin(f"{number}/{len(jobs)} {job.source.name}")
            try:
                if not self._attempt(job, bar):
                    claimed.append(job)
                    continue
                refusals = 0
            except Exception as error:
                refusals = refusals + 1 if isinstance(error, OutputError) else 0
                self.fail(job.source, error)
            bar.finish(job.plan.tiles)
            if refusals == MAX_REFUSALS:
                self._give_up([*claimed, *jobs[number:]])
                return []
        return claimed

    def _attempt(self, job: Job, bar: ProgressBar) -> bool:
        """Do a job, unless its output has come since; false while another run is at work on it."""
        with self._claim(job) as ours:
            if not ours:
                return False
            if self._exists(job):
                if self._is_over(job):
                    return True
                if self.request.on_exists != "rename":
                    raise _in_the_way(job)
                job = job.renamed(free_name(job.target, self._taken))
            try:
                self._run_one(job, bar)
            except AppearedError:
                if not self._is_over(job):
                    raise
        return True

    def _claim(self, job: Job) -> AbstractContextManager[bool]:
        """The caller of a single picture waits for it, and what may be replaced may be made twice."""
        shared = self._writes and not self.request.single and self.request.on_exists != "overwrite"
        return claim(job.target) if shared else nullcontext(True)

    def fail(self, path: Path, error: Exception) -> None:
        """Report a picture that failed; a single input's error is raised instead of shown.

        What tudsr did not raise on purpose is a bug of it, and is reported with its traceback.
        """
        self.tally.failed += 1
        exhausted = as_exhausted(error)
        if exhausted is not None:
            error = MemoryExhausted(f"{path}: {exhausted}", hint=exhausted.hint)
        if self.request.options.as_json:
            self.terminal.json(failure(error, path))
            mark_told(error)
        if self.request.single:
            raise error
        self.terminal.error(error, path)

    def sum_up(self, seconds: float) -> None:
        """Print the summary."""
        tally = self.tally
        if self.request.options.as_json:
            self.terminal.json({"summary": {**vars(tally), "seconds": round(seconds, 3)}})
        counts = ", ".join(f"{count} {name}" for name, count in vars(tally).items() if count)
        nothing = "nothing done" if self.stopped else "nothing to do"
        if not self.request.single:
            self.terminal.note(f"{counts or nothing} in {seconds:.1f} s")

    def finish(self, seconds: float) -> None:
        """Print the summary; BatchError if any picture failed."""
        self.sum_up(seconds)
        tally = self.tally
        if tally.failed:
            raised = BatchError(f"{tally.failed} of {counted(sum(vars(tally).values()), 'picture')} failed")
            if self.request.options.as_json:
                mark_told(raised)
            raise raised

    def _settle(self, jobs: Sequence[Job], inputs: Sequence[Path]) -> list[Job]:
        """The jobs that are left to do, each with an output that is nobody else's."""
        left: list[Job] = []
        for job in jobs:
            with self._reported(job):
                if not (self._exists(job) and self._is_over(job)):
                    left.append(job)
        if self.request.on_exists == "rename":
            left = self._renamed(left)
        refused = find_collisions(((job.source, job.target) for job in left), inputs)
        settled: list[Job] = []
        for job in left:
            with self._reported(job):
                if job.source in refused:
                    raise refused[job.source]
                if self._is_left(job):
                    settled.append(job)
        self._taken = {identity(job.target) for job in settled}
        return settled

    @contextmanager
    def _reported(self, job: Job) -> Iterator[None]:
        """An error in the block is this picture's own."""
        try:
            yield
        except Exception as error:
            self.fail(job.source, error)

    def _renamed(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs, where the output exists or is an earlier job's with another name for it."""
        taken = {identity(job.target) for job in jobs}
        kept: set[str] = set()
        renamed = []
        for job in jobs:
            if (place := identity(job.target)) in kept or self._exists(job):
                job = job.renamed(free_name(job.target, taken))
                taken.add(identity(job.target))
            kept.add(place)
            renamed.append(job)
        return renamed

    def _is_left(self, job: Job) -> bool:
        """Whether there is something to do or to wait for. Raises UsageError: the output is in the way."""
        if not self._exists(job):
            return True
        with self._claim(job) as ours:
            if not ours:
                return True
            if self._is_over(job):
                return False
            raise _in_the_way(job)

    def _prepare(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs whose output can be written, as far as one can tell; makes missing folders."""
        refused, swept = make_folders([job.target for job in jobs])
        if swept:
            self.terminal.remark(f"removed {counted(swept, 'unfinished file')} of runs that were killed")
        if refused and all(job.target.parent in refused for job in jobs):
            raise next(iter(refused.values()))
        prepared: list[Job] = []
        for job in jobs:
            with self._reported(job):
                if job.target.parent in refused:
                    raise refused[job.target.parent]
                check_name(job.target)
                prepared.append(job)
        return prepared

    def _exists(self, job: Job) -> bool:
        return self.request.on_exists != "overwrite" and os.path.lexists(job.target)

    def _is_over(self, job: Job) -> bool:
        """Whether a job whose output exists is done or skipped; then that is said."""
        request = self.request
        if not request.single or request.on_exists == "error":
            # Where one output was named, no other will do.
            done = job.earlier_result(self.records, any_name=not request.single)
            if done is not None:
                self._skip(job, done, "was made so by an earlier run")
                self.on_result(job.source, done)
                return True
        if request.on_exists == "skip":
            self._skip(job, job.target, "exists")
        return request.on_exists == "skip"

    def _skip(self, job: Job, output: Path, why: str) -> None:
        self.tally.skipped += 1
        self.terminal.note(f"{job.source}: skipped, {output} {why}")
        if self.request.options.as_json:
            self.terminal.json({"input": str(job.source), "output": str(output), "status": "skipped"})

    def _run_one(self, job: Job, bar: ProgressBar) -> None:
        plan = job.plan
        started = time.monotonic()
        needed = host_bytes(plan, job.header, job.target, self.upscaler.color)
        require_memory(needed, f"{job.source}: {plan.output_width} x {plan.output_height} px")
        picture, sha256 = job.read(self.request.options.metadata)
        check_transparency(picture, job.target)
        seconds = {"read": time.monotonic() - started, "upscale": 0.0}
        for note in (*job.notes, *picture.notes):
            self.terminal.remark(f"{job.source}: {note}")
        self.terminal.note(f"{job.source}: {outline(plan)}")
        links = links_note(job.target)
        lost = (*self._write(job, picture, bar, seconds), *links)
        seconds["write"] = time.monotonic() - started - sum(seconds.values())
        for note in lost:
            self.terminal.remark(f"{job.target}: {note}")
        rounded = {part: round(spent, 3) for part, spent in seconds.items()}
        if not self.request.to_stdout:
            job.remember(self.records, sha256)
        self._report(job, "ok", job.target, (*job.notes, *picture.notes, *lost), seconds=rounded)
        self.tally.ok += 1
        self.on_result(job.source, job.target)

    def _write(
        self, job: Job, picture: Picture, bar: ProgressBar, seconds: dict[str, float]
    ) -> tuple[str, ...]:
        """Upscale and write one picture, again from its beginning if smaller tiles mend a lack of memory."""
        plan, request = job.plan, self.request
        size = plan.output_width, plan.output_height
        replace = request.on_exists == "overwrite"
        wrapped = dataclasses.replace(picture, wrap=self.upscaler.wrap)
        turned = goes_by_columns(plan, job.header, job.target)

        def attempt() -> tuple[str, ...]:
            now = self.upscaler.plan(plan.width, plan.height, None, plan.notation, size=size)
            if now.stages != plan.stages:
                self.provide([now])
            upscaled = partial(
                self.upscaler.upscale_rows,
                picture.levels,
                None,
                plan.notation,
                bar.tile,
                size=size,
                by_columns=turned,
            )
            bands = _timed(_named(upscaled, job.source), seconds)
            return write_picture(wrapped, bands, *size, job.target, request.encoding, replace, turned)

        return self.upscaler.with_smaller_tiles(attempt)

    def _give_up(self, jobs: Sequence[Job]) -> None:
        self.gave_up = True
        for job in jobs:
            reason = f"{job.source}: not tried, the last {MAX_REFUSALS} outputs could not be written"
            self.fail(job.source, OutputError(reason))

    def _report(self, job: Job, status: str, line: str | Path, notes: Sequence[str], **more: object) -> None:
        """Print the line, or with --json an object of it and of `more`."""
        if self.request.to_stdout and status == "ok":
            self.terminal.file(job.target)
            return
        if not self.request.options.as_json:
            self.terminal.result(line)
            return
        done = {"status": status, **job.summary(self.upscaler), "seconds": None, "notes": notes, **more}
        self.terminal.json({"input": str(job.source), "output": str(job.target), **done})


def _in_the_way(job: Job) -> UsageError:
    hint = "--on-exists skip, overwrite or rename, or another -o"
    return UsageError(f"{job.target} exists already", hint=hint)


def _timed(bands: Iterator[FloatArray], seconds: dict[str, float]) -> Iterator[FloatArray]:
    """The bands; the time that they take to come is added to `seconds["upscale"]`."""
    while True:
        started = time.monotonic()
        band = next(bands, None)
        seconds["upscale"] += time.monotonic() - started
        if band is None:
            return
        yield band


def _named(upscaled: Callable[[], Iterator[FloatArray]], path: Path) -> Iterator[FloatArray]:
    """The bands; errors of the pipeline, which does not know the picture's name, get it."""
    try:
        yield from upscaled()
    except TudsrError as error:
        raise type(error)(f"{path}: {error}", hint=error.hint) from error
    except MemoryError as error:
        raise MemoryExhausted(f"{path}: out of memory") from error
