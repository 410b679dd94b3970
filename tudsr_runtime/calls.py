"""Calls into engine libraries that are under way, and how they end before they are done.

While a thread computes in C++, Python hears no signal and raises nothing there, and a graph may loop for
ever. So each call says here that it has begun, and how it can be ended from another thread, if it can.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from tudsr_runtime.atomic import remove_unfinished
from tudsr_runtime.errors import UsageError

Given = TypeVar("Given")
Result = TypeVar("Result")

GRACE_SECONDS = 5.0
"""How long a call may go on after it was told to end, or a signal came, before the process is ended."""
POLL_SECONDS = 0.1


@dataclass(eq=False)
class Calls:
    """The calls that are made for one purpose, such as one picture; they end together.

    `reason` says why there are to be no more of them.
    """

    reason: str | None = None
    _under_way: dict[int, Callable[[], None] | None] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def run(self, function: Callable[[Given], Result], x: Given) -> Result:
        """function(x), whose calls into a library count as these. Raises UsageError once they have ended."""
        before, _here.calls = getattr(_here, "calls", None), self
        try:
            self.require_wanted()
            return function(x)
        except Exception as error:
            if self.reason is not None:
                raise UsageError(self.reason) from error
            raise
        finally:
            _here.calls = before

    def require_wanted(self) -> None:
        """Raise UsageError once they have ended."""
        if self.reason is not None:
            raise UsageError(self.reason)

    def end(self, reason: str) -> None:
        """End those that are under way, as far as their library can, and let no other begin."""
        with self._changed:
            self.reason = self.reason or reason
            self.cancel_all()

    def wait(self, seconds: float = GRACE_SECONDS) -> bool:
        """Wait until none is under way; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._under_way, seconds)

    def add(self, number: int, cancel: Callable[[], None] | None) -> None:
        """A call of that number begins."""
        with self._changed:
            self._under_way[number] = cancel
            if self.reason is not None and cancel is not None:
                cancel()

    def remove(self, number: int) -> None:
        """It is over."""
        with self._changed:
            del self._under_way[number]
            self._changed.notify_all()

    def numbers(self) -> set[int]:
        """Of those that are under way."""
        with self._changed:
            return set(self._under_way)

    def cancel_all(self) -> None:
        """End those that are under way, as far as their library can; others may follow."""
        with self._changed:
            for cancel in list(self._under_way.values()):
                if cancel is not None:
                    cancel()


_every = Calls()
_numbers = itertools.count()
_here = threading.local()


@contextmanager
def under_way(cancel: Callable[[], None] | None = None) -> Iterator[None]:
    """The block is a call into an engine library; `cancel`, called from another thread, makes it return."""
    number, own = next(_numbers), getattr(_here, "calls", None)
    kept = [calls for calls in (own, _every) if calls is not None]
    for calls in kept:
        calls.add(number, cancel)
    try:
        yield
    finally:
        for calls in kept:
            calls.remove(number)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM end what is under way in engine libraries, in whatever thread.

    A call that goes on all the same, for `GRACE_SECONDS` or until a second signal, ends with the process;
    unfinished files are removed. What else is done at a signal is up to its handler. Main thread only.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # The interpreter writes the number of each signal there at once, even while Python does not run.
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    os_has_fork = hasattr(os, "register_at_fork")
    if os_has_fork and not _forks_are_told:
        _forks_are_told.append(True)
        os.register_at_fork(after_in_child=_leave_signals_to_the_parent)
    try:
        threading.Thread(target=_watch, args=(reader,), name="tudsr-signals", daemon=True).start()
    except RuntimeError:
        # Where memory is so short that there is no thread, a signal is heard between two calls.
        reader.close()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()


@contextmanager
def ended_by_others() -> Iterator[None]:
    """Within the block, signals end no call: whoever handles them lets calls finish."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)


_forks_are_told: list[bool] = []


def _leave_signals_to_the_parent() -> None:
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)


def end_process(number: int) -> None:
    """End this process at once, as by that signal, and leave no unfinished file."""
    remove_unfinished()
    os._exit(128 + number)


def _watch(reader: socket.socket) -> None:
    """Wait for a signal; then end every call, also such as begin before the process has ended."""
    with reader:
        number, began = _next_signal(reader, None), dict[int, float]()
        again: int | None = 0
        while number is not None and again is not None:
            _every.cancel_all()
            began = _since(began, _every.numbers())
            _end_if_deaf(began, again or number, at_once=bool(again))
            again = _next_signal(reader, POLL_SECONDS)
    # Python waits for the threads of calls before it ends, so those that are left are watched on.
    began = _since(began, _every.numbers() if number is not None else set())
    while number is not None and began:
        _end_if_deaf(began, number)
        time.sleep(POLL_SECONDS)
        began = _since(began, _every.numbers() & began.keys())


def _since(began: dict[int, float], calls: set[int]) -> dict[int, float]:
    """When each of these calls was seen first."""
    now = time.monotonic()
    return {call: began.get(call, now) for call in calls}


def _end_if_deaf(began: dict[int, float], number: int, *, at_once: bool = False) -> None:
    """End the process if a call goes on for longer than it may after a signal."""
    if began and (at_once or time.monotonic() - min(began.values()) > GRACE_SECONDS):
        print("stopped while an engine library was at work", file=sys.stderr, flush=True)  # noqa: T201
        end_process(number)


def _next_signal(reader: socket.socket, seconds: float | None) -> int | None:
    """The number of the next signal that ends a program, 0 if none comes in time; None: none will come."""
    reader.settimeout(seconds)
    try:
        while told := reader.recv(1):
            if told[0] in (signal.SIGINT, signal.SIGTERM):
                return told[0]
    except TimeoutError:
        return 0
    return None
