"""`tudsr watch`: every picture that comes into a folder is enlarged into another one.

What the system tells of changes only wakes the loop; what there is to do is read off the folder itself, so
that an event that was lost costs `RESCAN_SECONDS` and nothing else. What is done is known by the record of
the output folder, as in `tudsr upscale`: a watch that was stopped goes on where it was.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

from tudsr_runtime.batch.command import (
    at_another_scale,
    make_request,
    open_upscaler,
    provide_engines,
    suffix_of,
)
from tudsr_runtime.batch.done import Records
from tudsr_runtime.batch.inputs import Found, Source, find_inputs, is_folder
from tudsr_runtime.batch.options import UpscaleOptions, WatchOptions
from tudsr_runtime.batch.pipes import PlainFiles
from tudsr_runtime.batch.run import Batch
from tudsr_runtime.batch.selection import Selection, parse_shard
from tudsr_runtime.errors import InputError, OutputError, UsageError
from tudsr_runtime.terminal import Terminal

RESCAN_SECONDS = 5.0
"""Between two looks at the folder where nothing wakes the loop, as on network drives."""


def watch(folder: Path, output: Path, options: WatchOptions) -> None:
    """Enlarge what is in `folder` and what comes into it, until a signal ends the command.

    Raises:
        UsageError: no folder, or the results would be inputs. InputError: the folder is gone.
        OutputError: results cannot be written. TudsrError: bundle, device or options, before any work.
    """
    folder, output = folder.absolute(), output.absolute()
    _check_folders(folder, output)
    terminal = Terminal(options.quiet, options.verbose)
    own = {one.name: getattr(options, one.name) for one in fields(UpscaleOptions)}
    plain = replace(UpscaleOptions(**own), output=str(output))
    again = partial(at_another_scale, plain)
    request = make_request(PlainFiles([folder], output), plain, suffix_of(plain), again)
    if not request.to_folder:
        raise UsageError(f"{output} is a file, and results of a watch go to a folder")
    records = Records(terminal.remark)
    selection = Selection(options.include, options.exclude, parse_shard(options.shard, os.environ))
    inbox = Inbox(folder, output, options.recursive, selection, records, terminal)
    alarm = Alarm(folder, options.recursive, terminal.remark)
    with alarm, open_upscaler(plain, terminal) as upscaler:
        provide = partial(provide_engines, upscaler, terminal)
        batch, started = Batch(request, upscaler, terminal, records, provide), time.monotonic()
        terminal.note(f"watching {folder}, Ctrl-C ends it")
        try:
            _loop(inbox, batch, Arrivals(options.settle), alarm)
        finally:
            batch.sum_up(time.monotonic() - started)


def _check_folders(folder: Path, output: Path) -> None:
    if not is_folder(folder):
        raise UsageError(f"{folder} is no folder that could be watched")
    if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(output)):
        raise UsageError(
            f"results in {output} would come into {folder}, and be enlarged again", hint="another OUT"
        )


def _loop(inbox: Inbox, batch: Batch, arrivals: Arrivals, alarm: Alarm) -> None:
    while True:
        sources = inbox.pictures()
        ready = arrivals.ready(sources)
        if not ready:
            alarm.wait(arrivals.settle if arrivals.waiting else RESCAN_SECONDS)
            continue
        chosen = {source.path for source in ready}
        others = [source for source in sources if source.path not in chosen]
        batch.run(batch.plan(ready, others, create_folders=True))
        if batch.gave_up:
            raise OutputError("results could not be written; the watch ends", hint="the same command goes on")


@dataclass
class Inbox:
    """The folder that is watched: what is in it, and to be done here. What there is to say is said once."""

    folder: Path
    output: Path
    recursive: bool
    selection: Selection
    records: Records
    terminal: Terminal
    _told: set[str] = field(default_factory=set)

    def pictures(self) -> list[Source]:
        """The pictures that are there now. Raises InputError if the folder is gone."""
        if not is_folder(self.folder):
            raise InputError(f"{self.folder}: the folder that was watched is gone")
        found = find_inputs([self.folder], self.recursive, self.output, self.records, required=False)
        self.selection.narrow(found, required=False)
        for text in (*self._notes(found), *(f"error: {error}" for _, error in found.unreadable)):
            if text not in self._told:
                self._told.add(text)
                self.terminal.note(text)
        return found.sources

    def _notes(self, found: Found) -> list[str]:
        """The notes, but for numbers of pictures, which change with every one that comes."""
        counts = ("shard ", "--include ")
        return [f"note: {note}" for note in found.notes if not note.startswith(counts)]


class Arrivals:
    """Tells which pictures are whole: those that have not changed for `settle` seconds.

    Each is given out once; again if it has changed since, as one does whose copying had only paused.
    """

    def __init__(self, settle: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.settle = settle
        self._clock = clock
        self._since: dict[Path, tuple[FileState, float]] = {}
        self._given: dict[Path, FileState] = {}

    @property
    def waiting(self) -> bool:
        """Whether a picture is there that is not whole yet."""
        return any(self._given.get(path) != state for path, (state, _) in self._since.items())

    def ready(self, sources: Sequence[Source]) -> list[Source]:
        """Those of `sources`, which are all that is there now, that are whole and not given out yet."""
        now, seen, ready = self._clock(), {}, []
        for source in sources:
            state = FileState.of(source.path)
            if state is None:
                continue
            known, since = self._since.get(source.path, (state, now))
            seen[source.path] = (state, since if known == state else now)
            if now - seen[source.path][1] >= self.settle and self._given.get(source.path) != state:
                ready.append(source)
        self._since = seen
        self._given = {path: state for path, state in self._given.items() if path in seen}
        self._given |= {source.path: seen[source.path][0] for source in ready}
        return ready


@dataclass(frozen=True)
class FileState:
    """The properties of a file that change when it is written or replaced."""

    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState | None:
        """The state of the file now; None where there is no file any more."""
        with suppress(OSError):
            found = path.stat()
            return cls(found.st_ino, found.st_size, found.st_mtime_ns)
        return None


class Alarm:
    """Wakes whoever waits when something changes in a folder: watchfiles, in a thread of its own.

    The main thread, which gets the signals, is never inside it.
    """

    def __init__(self, folder: Path, recursive: bool, remark: Callable[[str], None]) -> None:
        import watchfiles

        self._watch = partial(watchfiles.watch, folder, watch_filter=None, recursive=recursive)
        self._remark = remark
        self._rung, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def wait(self, seconds: float) -> None:
        """Return after a change, or after `seconds` without one."""
        self._rung.wait(seconds)
        self._rung.clear()

    def _run(self) -> None:
        try:
            for _ in self._watch(stop_event=self._stop, raise_interrupt=False):
                self._rung.set()
        # What the system refuses (too many watches, a drive that tells nothing) costs time alone.
        except OSError as error:
            self._remark(f"changes are seen every {RESCAN_SECONDS:g} s only ({error})")

    def __enter__(self) -> Alarm:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=1)
