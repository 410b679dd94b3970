"""The CUDA runtime through `cuda-bindings`: what GPU is there, and calls whose failure is an error."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from tudsr_runtime.errors import DeviceError, MemoryExhausted
from tudsr_runtime.installation import install_hint

OUT_OF_MEMORY = "cudaErrorMemoryAllocation"
INSUFFICIENT_DRIVER = "cudaErrorInsufficientDriver"
CUDA_13_DRIVER = 580
"""From which driver on CUDA 13 runs, on Linux and Windows; cuda-bindings 13 has its runtime inside."""


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, compute capability as "sm89", and bytes of memory."""

    name: str
    target: str
    memory: int

    @property
    def card(self) -> str:
        """The kind of card, such as "sm89-nvidia-geforce-rtx-4090-24gib": what is timed on one is not the
        best on another of the same compute capability, nor need it fit there."""
        name = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return f"{self.target}-{name}-{round(self.memory / 2**30)}gib"


def open_cuda() -> Any:
    """The module `cuda.bindings.runtime`. Raises DeviceError if it is not installed."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DeviceError(f"cuda-bindings cannot be imported ({reason})", hint=install_hint("rtx")) from None


def find_gpu(what: str, hint: str, number: int = 0) -> Gpu:
    """GPU `number`. Raises DeviceError, which begins with `what`, if there is none."""
    cuda = open_cuda()
    status, count = cuda.cudaGetDeviceCount()
    if int(status) or number >= count:
        reason = status_text(cuda, status) if int(status) else f"there are {count} CUDA devices"
        raise DeviceError(f"{what}: {reason}", hint=_about_driver(reason) or hint)
    status, properties = cuda.cudaGetDeviceProperties(number)
    if int(status):
        raise DeviceError(f"{what}: {status_text(cuda, status)}", hint=hint)
    name = properties.name
    text = name.decode(errors="replace").strip("\0") if isinstance(name, bytes) else str(name)
    return Gpu(text, f"sm{properties.major}{properties.minor}", int(properties.totalGlobalMem))


def _about_driver(reason: str) -> str | None:
    """What to do about a driver that is too old; None where it is something else."""
    if INSUFFICIENT_DRIVER not in reason:
        return None
    return (
        f"where there is an NVIDIA GPU, a driver of {CUDA_13_DRIVER} or later, which CUDA 13 needs "
        "(nvidia-smi shows it), or the packages for CUDA 12 (docs/tensorrt.md)"
    )


def call(cuda: Any, function: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; what it returns besides its status (one value, or None).

    Raises:
        MemoryExhausted: the GPU has too little memory.
        DeviceError: it failed otherwise.
    """
    status, *values = getattr(cuda, function)(*arguments)
    if not int(status):
        return values[0] if values else None
    if _name(status) == OUT_OF_MEMORY:
        raise MemoryExhausted(
            f"the GPU is out of memory ({function} failed)",
            hint="close other programs that use the GPU, or --device cpu",
        )
    raise DeviceError(f"{function} failed: {status_text(cuda, status)}")


def status_text(cuda: Any, status: Any) -> str:
    """A status of the CUDA runtime in words, such as "CUDA driver version is insufficient ..."."""
    _, text = cuda.cudaGetErrorString(status)
    return f"{_name(status)} ({text.decode(errors='replace') if isinstance(text, bytes) else text})"


def _name(status: Any) -> str:
    return str(getattr(status, "name", status))
