"""Durations of repeated work, and the machine that they were measured on."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tudsr_runtime.installation import nvidia_smi, processor


@dataclass(frozen=True)
class Durations:
    """Seconds of `n` runs after the warm-up: median, 90th percentile (the nearest run above) and shortest."""

    p50: float
    p90: float
    min: float
    n: int

    @classmethod
    def of(cls, seconds: list[float]) -> Durations:
        """Sum up single runs, at least one."""
        ordered = sorted(seconds)
        middle, ninth = math.ceil(0.5 * len(ordered)) - 1, math.ceil(0.9 * len(ordered)) - 1
        return cls(ordered[middle], ordered[ninth], ordered[0], len(ordered))

    def times(self, factor: float) -> Durations:
        """The durations of `factor` runs, one after the other; below 1, a run's share of what was timed."""
        return Durations(self.p50 * factor, self.p90 * factor, self.min * factor, self.n)


def measure(work: Callable[[], object], warmup: int, repeats: int) -> Durations:
    """Run `work` `warmup` times unmeasured and then `repeats` times by the clock."""
    for _ in range(warmup):
        work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return Durations.of(seconds)


def describe_machine() -> dict[str, str]:
    """Processor, cores, system, and the GPU with its driver if nvidia-smi finds one."""
    machine = {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    gpu = nvidia_smi("name,driver_version,memory.total,power.limit")
    return {**machine, "gpu": gpu} if gpu else machine


def describe_memory() -> dict[str, str]:
    """The greatest resident memory of this process so far, and the GPU memory in use, as far as known."""
    peak = peak_resident()
    memory = {"peak resident": f"{peak / 1e6:.0f} MB"} if peak is not None else {}
    gpu = nvidia_smi("memory.used")
    return {**memory, "GPU in use": gpu} if gpu else memory


def describe_clocks() -> dict[str, str]:
    """Power drawn and clocks of the GPU at this moment, as far as nvidia-smi knows them."""
    found = nvidia_smi("power.draw,clocks.sm,clocks.mem")
    return {"GPU power, clocks": found} if found else {}


def peak_resident() -> int | None:
    """The greatest resident memory of this process so far in bytes; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
