from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.runtime.conftest import Tudsr
from tudsr_runtime import machine
from tudsr_runtime.errors import MemoryExhausted
from tudsr_runtime.machine import as_exhausted, bounded_threads, free_memory, processors, require_memory

MEMINFO = "MemTotal: 8000000 kB\nMemFree: 100 kB\nMemAvailable:    5000 kB\nSwapFree:  3000 kB\n"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `/proc` and a `/sys/fs/cgroup` of the test's own; no limit of the shell."""
    for name, folder in (("PROC", "proc"), ("CGROUPS", "cgroup")):
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(machine, name, tmp_path / folder)
    monkeypatch.setattr(machine, "_of_the_shell", lambda: iter(()))
    write(tmp_path / "proc/meminfo", MEMINFO)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.usefixtures("system")
def test_memory_of_the_machine_counts_what_can_be_had() -> None:
    free = free_memory()
    assert free is not None
    assert (free.bytes, free.limit) == (8000 * 1024, "of the machine")


@pytest.mark.parametrize("inside", ["/", "/a/b"])
def test_a_control_group_limits_it_and_so_do_those_around(system: Path, inside: str) -> None:
    """Version 2; in a container the path is the host's and its folder is not there."""
    write(system / "proc/self/cgroup", f"0::{inside}\n")
    write(system / "cgroup/memory.max", "3000000\n")
    write(system / "cgroup/memory.current", "2500000\n")
    write(system / "cgroup/memory.stat", "anon 1\ninactive_file 400000\n")
    write(system / "cgroup/a/memory.max", "max\n")
    write(system / "cgroup/a/b/memory.max", "9000000\n")
    write(system / "cgroup/a/b/memory.current", "1\n")
    free = free_memory()
    assert free is not None
    assert (free.bytes, free.limit) == (900_000, "of the control group")


def test_version_1_of_control_groups(system: Path) -> None:
    write(system / "proc/self/cgroup", "5:devices:/\n4:memory:/job\n0::/\n")
    root = system / "cgroup/memory"
    write(root / "memory.limit_in_bytes", f"{2**63 - 4096}\n")
    write(root / "memory.usage_in_bytes", "5\n")
    write(root / "job/memory.limit_in_bytes", "1000000\n")
    write(root / "job/memory.usage_in_bytes", "700000\n")
    write(root / "job/memory.stat", "inactive_file 1\ntotal_inactive_file 200000\n")
    free = free_memory()
    assert free is not None
    assert (free.bytes, free.limit) == (500_000, "of the control group")


@pytest.mark.usefixtures("system")
def test_what_is_missing_is_said_with_both_numbers() -> None:
    require_memory(8000 * 1024, "it")
    with pytest.raises(
        MemoryExhausted, match="it needs about 9 MB, and 8 MB of the machine are free"
    ) as caught:
        require_memory(9_000_000, "it")
    assert caught.value.exit_code == 7


def test_where_nothing_is_known_nothing_is_refused(system: Path) -> None:
    write(system / "proc/meminfo", "")
    assert free_memory() is None
    require_memory(10**18, "it")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's ulimit -v")
def test_ulimit_counts_what_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (pages + 10**6, pages + 10**6))
    free = free_memory()
    assert free is not None
    assert free.limit == "of ulimit -v"
    assert free.bytes <= 10**6


def test_this_machine_has_processors_and_memory() -> None:
    assert processors() >= 1
    free = free_memory()
    assert free is None or free.bytes > 0


def test_threads_are_bounded_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "processors", lambda: 4)
    told: list[str] = []
    assert [bounded_threads(asked, told.append) for asked in (None, 1, 4)] == [None, 1, 4]
    assert told == []
    assert bounded_threads(10**400, told.append) == 4
    assert told == ["instead of more than 10^9 threads 4 will run, one for each processor"]


def test_what_python_says_where_memory_is_short() -> None:
    for error in (MemoryError(), RuntimeError("can't start new thread")):
        found = as_exhausted(error)
        assert found is not None
        assert found.exit_code == 7
    assert as_exhausted(RuntimeError("another")) is None


def test_no_further_thread_is_no_bug(tudsr: Tudsr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from PIL import Image

    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("tudsr-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    result = tudsr("upscale", tmp_path / "photo.png")
    assert result.code == 7
    assert "Traceback" not in result.err
    assert "out of memory: the system starts no further thread" in result.err


HUGE = "1" + "0" * 400


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--megapixels", "1e305"), "megapixels must be positive, and at most"),
        (("--megapixels", HUGE), "megapixels must be positive, and at most"),
        (("--width", HUGE), "width must be at most 2147483647 px"),
        (("--height", HUGE), "height must be at most 2147483647 px"),
        (("--longest", HUGE), "longest must be at most 2147483647 px"),
        (("--width", "2147483647", "--height", "2147483647"), "a side grows 1 to 32 times"),
        (("--scale", HUGE), "scale must be 1 to 32"),
        (("--scale", "nan"), "scale must be 1 to 32"),
        (("--overlap", HUGE), "overlap must be 17 to"),
        (("--strength", HUGE), "strength must be"),
        (("--factors", f"{HUGE}x2"), "factors must be two whole numbers"),
    ],
)
def test_numbers_beyond_all_bounds_are_a_line(
    tudsr: Tudsr, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    result = tudsr("upscale", tmp_path / "photo.png", *words)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert "Traceback" not in result.err
