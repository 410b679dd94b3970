"""What this process may use of its machine: processors, and memory within every limit that it is under."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tudsr_runtime.errors import MemoryExhausted

PROC = Path("/proc")
CPUINFO = PROC / "cpuinfo"
CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60
"""Bytes from which on a limit of version 1 of control groups is none."""
NO_THREAD = "can't start new thread"
"""What Python says where the system refuses one, in a RuntimeError of no narrower kind."""


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that this process may still take, and what allows no more ("of the machine")."""

    bytes: int
    limit: str


def processors() -> int:
    """The processors that this process may run on, at least 1."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def processor_says(*names: str, cpuinfo: Path = CPUINFO) -> str:
    """What Linux says of the first processor under one of these names; "" where it says nothing."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    told = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in told if name.strip() in names), "")


def bounded_threads(asked: int | None, notify: Callable[[str], None]) -> int | None:
    """At most one thread a processor; `notify` is told where that is less than was asked for.

    More of them compute nothing sooner, and thousands take gigabytes and minutes to start.
    """
    if asked is None or asked <= processors():
        return asked
    shown = str(asked) if asked < 10**9 else "more than 10^9"
    notify(f"instead of {shown} threads {processors()} will run, one for each processor")
    return processors()


def free_memory() -> FreeMemory | None:
    """The least of what machine, control groups and `ulimit -v` leave; None where the system does not say.

    Memory that the system would take back from its cache of files counts as free, and so does swap.
    """
    found = [*_of_the_machine(), *_of_control_groups(), *_of_the_shell()]
    return min(found, key=lambda free: free.bytes, default=None)


def require_memory(needed: int, doing: str) -> None:
    """Raise MemoryExhausted if `doing` needs more bytes than there are, before anything is begun."""
    free = free_memory()
    if free is not None and needed > free.bytes:
        raise MemoryExhausted(
            f"{doing} needs about {needed / 1e6:.0f} MB, and {max(0, free.bytes) / 1e6:.0f} MB "
            f"{free.limit} are free",
            hint="a smaller --scale, a part of the picture, or a machine with more memory",
        )


def as_exhausted(error: BaseException) -> MemoryExhausted | None:
    """What to raise for Python's own ways to say that memory is short; None for other errors."""
    if isinstance(error, MemoryError):
        return MemoryExhausted("out of memory", hint="close other programs, or a smaller --scale")
    if isinstance(error, RuntimeError) and NO_THREAD in str(error):
        return MemoryExhausted(
            "out of memory: the system starts no further thread", hint="raise ulimit -v and ulimit -u"
        )
    return None


def _of_the_machine() -> Iterator[FreeMemory]:
    found = re.findall(r"^(MemAvailable|SwapFree):\s+(\d+) kB", _read(PROC / "meminfo"), re.MULTILINE)
    if any(name == "MemAvailable" for name, _ in found):
        yield FreeMemory(sum(int(kilobytes) for _, kilobytes in found) * 1024, "of the machine")


def _of_control_groups() -> Iterator[FreeMemory]:
    """Of the group of this process and of all around it, in version 1 or 2 of control groups."""
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _limits_along(CGROUPS, path, names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _limits_along(CGROUPS / "memory", path, names)


def _limits_along(root: Path, path: str, names: tuple[str, str, str]) -> Iterator[FreeMemory]:
    # In a container the path may be that of the host, and the root the group itself.
    inner = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(inner) + 1):
        folder = root.joinpath(*inner[:depth])
        limit, used = (_read(folder / name).strip() for name in names[:2])
        if limit.isdigit() and used.isdigit() and int(limit) < UNLIMITED:
            cached = re.search(rf"^{names[2]} (\d+)", _read(folder / "memory.stat"), re.MULTILINE)
            free = int(limit) - int(used) + (int(cached[1]) if cached else 0)
            yield FreeMemory(free, "of the control group")


def _of_the_shell() -> Iterator[FreeMemory]:
    """What `ulimit -v` leaves of the addresses, of which all that is mapped takes some."""
    try:
        import resource
    except ImportError:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read(PROC / "self" / "statm").split()
    if limit != resource.RLIM_INFINITY and pages:
        yield FreeMemory(limit - int(pages[0]) * resource.getpagesize(), "of ulimit -v")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
