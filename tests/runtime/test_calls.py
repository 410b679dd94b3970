"""What ends a call into an engine library: a signal, another thread, the end of the process; and what cannot
use its engines."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cli
from tests.runtime.conftest import MakeBundle
from tests.runtime.engines.hostile import endless, plant
from tudsr_runtime import Upscaler
from tudsr_runtime.calls import Calls, under_way
from tudsr_runtime.engines.openvino import _opened_core
from tudsr_runtime.errors import DeviceError, UsageError

ROOT = Path(cli.__file__).parent
STUCK = """
import ctypes, signal, sys, threading, cli
from tudsr_runtime.engines.stages import LoadedStage
from tudsr_runtime import calls
calls.GRACE_SECONDS = float(sys.argv.pop(1))
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
library.pthread_mutex_init(mutex, None)
library.pthread_mutex_lock(mutex)
def stuck(self, x):
    if threading.current_thread() is threading.main_thread():
        # Or it would be heard after "ready", before the thread is in C.
        signal.signal(signal.SIGTERM, lambda *_: None)
    with calls.under_way():
        print("ready", file=sys.stderr, flush=True)
        # In C, and locked already: unlike Python's own locks it hears no signal in the main thread either.
        library.pthread_mutex_lock(mutex)
LoadedStage.run = stuck
end = calls.Calls.cancel_all
def cancel_all(self):
    print("told", file=sys.stderr, flush=True)
    end(self)
calls.Calls.cancel_all = cancel_all
sys.exit(cli.main())
"""
"""The command, with engines that never return and hear nothing; the first word is the time they get."""


@pytest.fixture
def endless_bundle(make_bundle: MakeBundle, tmp_path: Path) -> Path:
    bundle = make_bundle(tmp_path / "b", tile=64)
    plant(bundle, "unet_stage1", endless((1, 48, 16, 16)))
    return bundle


def start(code: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stderr=subprocess.PIPE,
    )


def until(process: subprocess.Popen[str], word: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return
    pytest.fail(f"never said {word!r}")


def ended(process: subprocess.Popen[str], code: int) -> None:
    """It ends by itself, with that code."""
    try:
        assert process.wait(timeout=120) == code
    finally:
        process.kill()


def refused(function: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(UsageError):
        function(*arguments)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_signal_ends_a_graph_that_never_does(endless_bundle: Path, backend: str, number: int) -> None:
    pytest.importorskip(backend, reason=f"needs {backend}")
    Image.new("RGB", (8, 8)).save(endless_bundle.parent / "photo.png")
    words = ("upscale", endless_bundle.parent / "photo.png", "--bundle", endless_bundle, "--overlap", "24")
    with start("import sys, cli; sys.exit(cli.main())", *words, "--backend", backend) as process:
        until(process, "factors")
        # Before the loop begins, too, and while it is loaded.
        process.send_signal(number)
        ended(process, 128 + number)
    assert not [*endless_bundle.parent.glob(".tudsr-*.tmp")]
    assert not [*endless_bundle.parent.glob("photo_x8*")]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(("grace", "signals"), [("0.2", 1), ("1e6", 2)])
@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_what_hears_no_signal_ends_with_the_process(
    make_bundle: MakeBundle, tmp_path: Path, grace: str, signals: int, words: tuple[str, ...]
) -> None:
    """In the thread of the tiles and in the main one; in its time, or at a second signal."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    bundle = make_bundle(tmp_path / "b", tile=64)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    line = ("upscale", tmp_path / "photo.png", "--bundle", bundle, "--overlap", "24", *words)
    with start(STUCK, grace, *line) as process:
        until(process, "ready")
        process.send_signal(signal.SIGTERM)
        if signals == 2:
            until(process, "told")
            process.send_signal(signal.SIGTERM)
        ended(process, 128 + signal.SIGTERM)
    assert not [*tmp_path.glob(".tudsr-*.tmp")]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_what_hears_no_signal_ends_the_process_though_the_command_is_over_first() -> None:
    """The interpreter would wait for the thread of such a call for ever."""
    code = """
import os, signal, sys, threading
from tudsr_runtime import calls
calls.GRACE_SECONDS, lock, entered = 0.5, threading.Lock(), threading.Event()
def deaf():
    with calls.under_way():
        entered.set()
        lock.acquire()
signal.signal(signal.SIGTERM, lambda *_: None)
lock.acquire()
with calls.ended_by_signals():
    threading.Thread(target=deaf).start()
    entered.wait()
    os.kill(os.getpid(), signal.SIGTERM)
"""
    with start(code) as process:
        ended(process, 128 + signal.SIGTERM)


def test_an_exception_in_the_caller_ends_a_graph_that_never_does(endless_bundle: Path) -> None:
    """As Ctrl-C in a host that has other things to do."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    with Upscaler(endless_bundle, "onnxruntime", "cpu", threads=1, overlap=24) as upscaler:
        before = {*threading.enumerate()}
        bands = upscaler.upscale_rows(np.zeros((8, 8, 3), np.uint8), 2)
        taker = threading.Thread(target=refused, args=(next, bands))
        taker.start()
        while not any(calls.numbers() for calls in tuple(upscaler._under_way)):
            assert taker.is_alive(), "it has ended without a call"
        upscaler.close()
        taker.join(timeout=60)
        assert not taker.is_alive()
        bands.close()
        assert {*threading.enumerate()} <= before


@pytest.fixture
def upscaler(make_bundle: MakeBundle, tmp_path: Path) -> Upscaler:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    return Upscaler(make_bundle(tmp_path / "b", tile=64), "onnxruntime", "cpu", threads=1, overlap=24)


def test_close_ends_a_stream_that_is_not_read_to_its_end(upscaler: Upscaler) -> None:
    x = np.random.default_rng(0).integers(0, 256, (90, 20, 3), np.uint8)
    rows = upscaler.upscale_rows(x, 4)
    next(rows)
    upscaler.close()
    with pytest.raises(UsageError, match="the Upscaler was closed while this picture was computed"):
        list(rows)
    assert upscaler.upscale(x, 4).shape == (360, 80, 3)
    upscaler.close()


def test_close_in_another_thread_is_an_error_of_the_call(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tudsr_runtime.engines.stages import LoadedStage

    whole, begun, errors = LoadedStage.run, threading.Event(), []

    def slow(stage: LoadedStage, x: np.ndarray) -> np.ndarray:
        begun.set()
        return whole(stage, x)

    def work() -> None:
        try:
            while True:
                upscaler.upscale(np.zeros((200, 30, 3), np.uint8), 4)
        except Exception as error:
            errors.append(error)

    monkeypatch.setattr(LoadedStage, "run", slow)
    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    while thread.is_alive():
        # Between two calls it ends none of them.
        upscaler.close()
    assert [type(error) for error in errors] == [UsageError]
    upscaler.close()


def test_engines_at_work_that_cannot_be_ended_are_not_released(
    upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, free, begun = Calls(), threading.Event(), threading.Event()

    def stuck(_: None) -> None:
        with under_way():
            begun.set()
            free.wait()

    monkeypatch.setattr(Calls.wait, "__defaults__", (0.01,))
    thread = threading.Thread(target=calls.run, args=(stuck, None))
    upscaler._under_way.add(calls)
    thread.start()
    begun.wait()
    try:
        with pytest.raises(DeviceError, match="still at work"):
            upscaler.close()
    finally:
        free.set()
        thread.join()
        upscaler._under_way.clear()


fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs a system that forks"
)


def in_child(function: Callable[[], str]) -> str:
    """What `function` returns in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, function().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        said = told.read()
    os.waitpid(child, 0)
    return said


@fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork_the_parent_s_engines_are_refused(upscaler: Upscaler) -> None:
    x = np.zeros((8, 8, 3), np.uint8)
    upscaler.upscale(x, 2)

    def use() -> str:
        try:
            upscaler.upscale(x, 2)
        except UsageError as error:
            upscaler.close()
            return f"{error} / {error.hint}"
        return "it ran"

    said = in_child(use)
    assert "made before the process was forked" in said
    assert "spawn" in said
    assert upscaler.upscale(x, 2).shape == (16, 16, 3)
    upscaler.close()


@fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_a_fork_openvino_is_not_used_and_that_is_said(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for library in ("openvino", "onnxruntime"):
        pytest.importorskip(library, reason=f"needs {library}")
    bundle = make_bundle(tmp_path / "b", tile=64)
    _opened_core()

    def make() -> str:
        try:
            Upscaler(bundle, "openvino", "cpu", overlap=24)
        except DeviceError as error:
            with Upscaler(bundle, device="cpu", threads=1, overlap=24) as other:
                other.upscale(np.zeros((8, 8, 3), np.uint8), 2)
                return f"{error} / {other.choice}"
        return "it was made"

    said = in_child(make)
    assert said.startswith("OpenVINO was started before this process was forked")
    assert "/ onnxruntime on cpu (OpenVINO was started before" in said


def test_an_upscaler_pickles_by_its_arguments(upscaler: Upscaler) -> None:
    x = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    with upscaler:
        large = upscaler.upscale(x, 3)
        with pickle.loads(pickle.dumps(upscaler)) as other:
            assert other.settings == upscaler.settings
            assert other.choice == upscaler.choice
            assert other.bundle.sha256 == upscaler.bundle.sha256
            assert (other.upscale(x, 3) == large).all()


_own: Any = None


def keep(upscaler: Upscaler) -> None:
    global _own
    _own = upscaler


def enlarge(x: np.ndarray) -> np.ndarray:
    large: np.ndarray = _own.upscale(x, 2)
    return large


def test_a_pool_is_given_an_upscaler_once_a_process(upscaler: Upscaler) -> None:
    """As the docstring of Upscaler says."""
    pictures = [np.full((8, 8, 3), level, np.uint8) for level in (0, 90, 255)]
    with multiprocessing.get_context("spawn").Pool(1, keep, (upscaler,)) as pool:
        made = pool.map(enlarge, pictures)
    with upscaler:
        assert all((a == upscaler.upscale(b, 2)).all() for a, b in zip(made, pictures, strict=True))
