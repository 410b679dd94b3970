"""Work that goes on while other work waits: tiles ahead of their blending, stages ahead of their encoding.

Engines, numpy and the codecs all let go of Python's lock while they compute, so threads are enough.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

POLL_SECONDS = 0.2
"""How long a wait lasts before it looks whether it is still wanted; also lets Ctrl-C through on Windows."""


class Abandoned(Exception):  # noqa: N818 - no error, a way to unwind
    """Raised in the background once nobody wants the result any more."""


def run_ahead(
    function: Callable[[Item], Result], items: Iterator[Item], pool: Executor, depth: int
) -> Iterator[Result]:
    """function(item) of each item, in order; `depth` of them are under way in `pool` while one is used."""
    under_way: deque[Future[Result]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) > depth:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()


def in_background(
    produce: Callable[[threading.Event], Iterator[Item]],
    ahead: int = 1,
    on_stop: Callable[[], None] = lambda: None,
) -> Generator[Item, None, None]:
    """The items of `produce(stop)`, made in a thread of their own, up to `ahead` of them in store.

    Whatever `produce` raises is raised here. When the caller stops early, `stop` is set; `produce` may look
    at it to end sooner, by raising `Abandoned`, and `on_stop` is called, which may end what it waits for. The
    thread has ended when this generator has.
    """
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(produce, made, stop), name="tudsr-stages", daemon=True)
    thread.start()
    try:
        while True:
            item, error = _get(made)
            if error is not None:
                try:
                    raise error
                finally:
                    # Its traceback holds this frame: what failed would stay alive in the circle, engines too.
                    del error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        on_stop()
        thread.join()
        _empty(made)


def _fill(
    produce: Callable[[threading.Event], Iterator[Item]],
    made: queue.Queue[tuple[Item | None, BaseException | None]],
    stop: threading.Event,
) -> None:
    try:
        for item in produce(stop):
            if not _put(made, (item, None), stop):
                return
        _put(made, (None, None), stop)
    except BaseException as error:
        _put(made, (None, error), stop)


def _empty(made: queue.Queue[Item]) -> None:
    """An error that nobody took would hold this queue, and the queue the error."""
    with suppress(queue.Empty):
        while True:
            made.get_nowait()


def _get(made: queue.Queue[Item]) -> Item:
    while True:
        try:
            return made.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue


def _put(made: queue.Queue[Item], item: Item, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            made.put(item, timeout=POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False
