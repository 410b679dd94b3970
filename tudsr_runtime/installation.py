"""How to install what an extra of the package names, by a command that works wherever tudsr came from."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tudsr_runtime.machine import processor_says

ENGINE_LIBRARIES = (
    *("openvino", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-nv-tensorrt-rtx"),
    *("tensorrt", "tensorrt-cu12", "tensorrt-rtx", "tensorrt-rtx-cu12"),
)
"""The packages of the engine libraries, of TensorRT those that are asked for by name."""


def install_hint(extra: str) -> str:
    """The pip command for an extra, such as "openvino": `pip install "openvino>=2025.0"`.

    The package is on no index, so that `tudsr[openvino]` works nowhere: what the extra stands for is named
    instead, as the installed package lists it. A source tree that is not installed is to be installed itself.
    """
    tree = f'pip install "{Path(__file__).parent.parent}[{extra}]"'
    try:
        listed = importlib.metadata.requires("tudsr") or []
    except importlib.metadata.PackageNotFoundError:
        return tree
    wanted = [requirement for requirement in map(str, listed) if _extra_of(requirement) == extra]
    # A tree that has changed since it was installed may have an extra that the installed package has not.
    names = " ".join(f'"{requirement.partition(";")[0].strip()}"' for requirement in wanted)
    return f"pip install {names}" if names else tree


def _extra_of(requirement: str) -> str | None:
    found = re.search(r"""extra == ['"]([\w.-]+)['"]""", requirement)
    return found[1] if found else None


def engine_libraries() -> dict[str, str]:
    """The versions of those engine libraries that are installed."""
    return versions_of(ENGINE_LIBRARIES)


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those of the packages that are installed."""
    found = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def processor(kind: str = "cpu") -> str:
    """Name of the processor of a kind of device: of "cuda" the GPUs with driver and memory, else the CPU."""
    if kind == "cuda":
        return nvidia_smi("name,driver_version,memory.total") or "an NVIDIA GPU"
    return processor_says("model name") or platform.processor() or platform.machine()


def nvidia_smi(query: str) -> str | None:
    """What nvidia-smi answers for each GPU, "; " between them; None if there is none."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(done.stdout.strip().splitlines()) or None
