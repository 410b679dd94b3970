from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tudsr_runtime.tiling.run_ahead import Abandoned, in_background, run_ahead


def test_results_come_in_order_and_so_many_ahead() -> None:
    started: list[int] = []

    def double(x: int) -> int:
        time.sleep(0.01 if x % 2 else 0)
        started.append(x)
        return 2 * x

    with ThreadPoolExecutor(2) as pool:
        results = run_ahead(double, iter(range(10)), pool, depth=3)
        assert next(results) == 0
        assert list(results) == [2 * x for x in range(1, 10)]
    assert sorted(started) == list(range(10))


def test_an_error_comes_at_its_place_and_ends_the_rest() -> None:
    release, seen = threading.Event(), []

    def work(x: int) -> int:
        seen.append(x)
        if x == 1:
            raise ValueError("one")
        if x == 2:
            release.wait(300)
        return x

    with ThreadPoolExecutor(1) as pool:
        results = run_ahead(work, iter(range(100)), pool, depth=4)
        assert next(results) == 0
        with pytest.raises(ValueError, match="one"):
            next(results)
        release.set()
    assert len(seen) <= 3


def test_items_are_made_in_another_thread() -> None:
    names: list[str] = []

    def produce(_: threading.Event) -> Iterator[int]:
        for x in range(5):
            names.append(threading.current_thread().name)
            yield x

    assert list(in_background(produce)) == [0, 1, 2, 3, 4]
    assert set(names) == {"tudsr-stages"}


def test_no_more_is_made_than_is_wanted() -> None:
    made: list[int] = []

    def produce(_: threading.Event) -> Iterator[int]:
        for x in range(100):
            made.append(x)
            yield x

    items = in_background(produce, ahead=1)
    next(items)
    time.sleep(0.05)
    assert len(made) <= 3


def test_what_is_raised_there_is_raised_here() -> None:
    def produce(_: threading.Event) -> Iterator[int]:
        yield 1
        raise MemoryError("there")

    items = in_background(produce)
    assert next(items) == 1
    with pytest.raises(MemoryError, match="there"):
        next(items)


def test_stopping_early_ends_the_thread() -> None:
    ended: list[threading.Thread] = []

    def produce(stop: threading.Event) -> Iterator[int]:
        try:
            yield 0
            stop.wait(300)
            raise Abandoned
        finally:
            ended.append(threading.current_thread())

    items = in_background(produce)
    next(items)
    items.close()
    (thread,) = ended
    assert thread.name == "tudsr-stages"
    assert not thread.is_alive()


def test_what_an_error_reaches_is_let_go_with_it() -> None:
    """An engine that ran out of memory must not live on in the traceback while a smaller one is loaded."""

    class Engine:
        pass

    def produce(_: threading.Event) -> Iterator[int]:
        engine = Engine()
        seen.append(weakref.ref(engine))
        raise MemoryError(engine)
        yield 0

    seen: list[weakref.ref[Engine]] = []
    gc.disable()
    try:
        with pytest.raises(MemoryError):
            list(in_background(produce))
        unread = in_background(lambda stop: iter([0, *produce(stop)]))
        unread.close()
        assert [ref() for ref in seen] == [None]
    finally:
        gc.enable()
