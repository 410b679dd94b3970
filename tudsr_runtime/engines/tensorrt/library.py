"""The TensorRT libraries, and the GPUs that engines are built for.

TensorRT for RTX builds ahead of time for any of `TARGETS`, on a machine without a GPU too. TensorRT itself
builds on the GPU that will run the engine, by timing kernels there: its target is that card.
"""

from __future__ import annotations

import importlib
import platform
import re
from dataclasses import dataclass
from typing import Any

from tudsr_runtime.engines.tensorrt.cuda import Gpu, find_gpu
from tudsr_runtime.errors import DeviceError, UsageError, quoted
from tudsr_runtime.installation import install_hint

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""Name of each library and of the module that it is imported as."""
EXTRAS = {"tensorrt-rtx": "rtx", "tensorrt": "tensorrt"}
"""Name of each library and of the extra that brings it."""
TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""Compute capabilities that TensorRT for RTX builds for: RTX 20, A100, RTX 30, RTX 40, RTX 50, DGX Spark."""
OLDEST_TENSORRT = (10, 9)
"""The first whose parser knows GroupNormalization of opset 21."""
FIRST_UNKNOWN_TENSORRT = (12,)


@dataclass(frozen=True)
class Library:
    """An imported TensorRT library; `module` is `tensorrt` or `tensorrt_rtx`, their names are the same."""

    name: str
    module: Any

    @property
    def version(self) -> str:
        """The library's version, such as "11.4.0.106"."""
        return str(self.module.__version__)

    @property
    def ahead_of_time(self) -> bool:
        """Whether the library builds for a GPU that is not there."""
        return hasattr(self.module, "ComputeCapability")

    @property
    def platform(self) -> str:
        """Where its engines run besides the GPU: engines of TensorRT for RTX are the same everywhere."""
        return "any" if self.ahead_of_time else f"{platform.system()}_{platform.machine()}".lower()

    def target(self, gpu: Gpu) -> str:
        """What its engines for that GPU are for: its compute capability, or that kind of card."""
        return gpu.target if self.ahead_of_time else gpu.card


def open_library(name: str) -> Library:
    """Import the library of that name, which must be one of `MODULES`.

    Raises:
        UsageError: no library of that name.
        DeviceError: it is not installed, cannot be imported, or its version is not one that tudsr knows.
    """
    if name not in MODULES:
        raise UsageError(f"no engine library is called {quoted(name)}; there are {', '.join(MODULES)}")
    try:
        module = importlib.import_module(MODULES[name])
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DeviceError(f"{name} cannot be imported ({reason})", hint=install_hint(EXTRAS[name])) from None
    library = Library(name, module)
    _check_version(library)
    return library


def _check_version(library: Library) -> None:
    number = tuple(map(int, re.findall(r"\d+", library.version)[:2]))
    if library.name == "tensorrt" and not OLDEST_TENSORRT <= number < FIRST_UNKNOWN_TENSORRT:
        raise DeviceError(
            f"TensorRT {library.version} is installed; tudsr knows 10.9 to 11", hint=install_hint("tensorrt")
        )


def choose_target(library: Library, asked: str | None, number: int = 0) -> tuple[str, str]:
    """The target to build for and the reason. None asks for this machine's GPU of that number.

    Raises:
        UsageError: no such target.
        DeviceError: there is no GPU to build for, or (TensorRT itself) the GPU is another than the one asked
            for.
    """
    if library.ahead_of_time and asked is not None:
        _check_target(asked)
        return asked, "as asked"
    hint = f"--target {'|'.join(TARGETS)}" if library.ahead_of_time else "build on the machine that will run"
    gpu = find_gpu(f"{library.name} has no GPU to build for", hint=hint, number=number)
    if library.ahead_of_time:
        _check_target(gpu.target)
    elif asked not in (None, gpu.target, gpu.card):
        raise DeviceError(
            f"TensorRT builds for its own GPU only: {gpu.name} is {gpu.target}, not {asked}",
            hint=f"--engine tensorrt-rtx --target {asked}, or build on the machine that will run",
        )
    return library.target(gpu), f"this machine's {gpu.name}"


def _check_target(target: str) -> None:
    if target not in TARGETS:
        raise UsageError(
            f"TensorRT for RTX does not build for {quoted(target)}; it knows {', '.join(TARGETS)}",
            hint="an RTX 30 card is sm86, RTX 40 sm89, RTX 50 sm120",
        )
