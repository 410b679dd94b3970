"""A lock that the garbage collector never waits for: who holds it does what must not be done meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class CollectorLock:
    """A re-entrant lock, and work to be done when nobody holds it.

    Python may collect an object at any moment, in the middle of work that the same thread has begun under the
    lock: what `__del__` has to do is given to `soon`, which never waits.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._left: deque[Callable[[], None]] = deque()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        self._lock.release()
        self._catch_up()

    def soon(self, work: Callable[[], None]) -> None:
        """Do `work` under the lock: now if nobody holds it, else when its holder lets go."""
        self._left.append(work)
        self._catch_up()

    def _catch_up(self) -> None:
        # Looked at again after each release, so that work left meanwhile by others is not forgotten.
        while self._left and self._lock.acquire(blocking=False):
            if self._depth:  # It is this very thread that holds it.
                self._lock.release()
                return
            self._depth += 1
            try:
                self._left.popleft()()
            finally:
                self._depth -= 1
                self._lock.release()
