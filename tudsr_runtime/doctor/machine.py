"""The machine as `tudsr doctor` sees it: versions, processor, memory, GPU, cache."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from tudsr_runtime.bench.measure import describe_machine
from tudsr_runtime.doctor.findings import Finding
from tudsr_runtime.engines.tensorrt.cuda import CUDA_13_DRIVER
from tudsr_runtime.engines.tensorrt.library import TARGETS
from tudsr_runtime.files import cache_folder
from tudsr_runtime.installation import nvidia_smi, versions_of
from tudsr_runtime.machine import CPUINFO, processor_says, processors
from tudsr_runtime.terminal import counted
from tudsr_runtime.version import __version__

PACKAGES = (
    *("numpy", "pillow", "typer", "rich"),
    *("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-migraphx"),
    *("openvino", "tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    *("tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "cuda-bindings"),
    *("torch", "diffusers", "peft", "transformers", "accelerate", "onnx", "onnxscript"),
    *("huggingface-hub", "watchfiles", "fastapi", "uvicorn"),
)
"""What tudsr uses where it is installed."""
SAME_MODULE = tuple(name for name in PACKAGES if name.startswith("onnxruntime"))
"""Packages that are installed over each other, as the one module `onnxruntime`."""
FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve"),
)
"""What of a processor decides precision and speed, as Linux names it."""
HALF = ("amx_bf16", "avx512_bf16")
VARIABLES = (
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("ORT_DISABLE_TELEMETRY", "TUDSR_DEBUG", "HF_HUB_OFFLINE"),
)
"""Variables that change what is computed where. Those that hold names of folders are not told."""


def versions() -> Iterator[Finding]:
    """tudsr, Python, the system and the packages; one problem where two of these are one module."""
    machine = describe_machine()
    python = f"{platform.python_implementation()} {machine['python']}"
    facts = {"tudsr": __version__, "python": machine["python"], "system": machine["system"]}
    yield Finding("tudsr", f"{__version__}, {python}, {machine['system']}", facts=facts)
    found = versions_of(PACKAGES)
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    yield Finding("packages", listed, facts=found)
    yield from _clash([name for name in SAME_MODULE if name in found])


def _clash(there: list[str]) -> Iterator[Finding]:
    if len(there) > 1:
        text = f"{' and '.join(there)} are installed over each other, as one module"
        keep = next((name for name in there if name != "onnxruntime"), there[0])
        hint = f"pip uninstall {' '.join(there)} && pip install {keep}"
        yield Finding("onnxruntime", text, "problem", hint)


def processor_and_memory() -> Iterator[Finding]:
    """The processor, what decides its precision, memory, and the variables that limit it."""
    features = processor_features()
    cores = processors()
    says = f"bf16 by {', '.join(f for f in HALF if f in features)}" if features & {*HALF} else "no bf16"
    named = [name for name in FEATURES if name in features]
    known = f"{', '.join(named)}: {says}" if features else "the system does not tell its features"
    text = f"{describe_machine()['processor']}, {counted(cores, 'core')} for this process; {known}"
    yield Finding("processor", text, facts={"cores": cores, "features": named})
    if (memory := _memory()) is not None:
        yield Finding("memory", f"{memory / 1e9:.1f} GB", facts={"bytes": memory})
    set_here = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if set_here:
        yield Finding("variables", ", ".join(f"{n}={v}" for n, v in set_here.items()), facts=set_here)


def processor_features(cpuinfo: Path = CPUINFO) -> set[str]:
    """Those of `FEATURES` that the processor has; none where the system does not tell."""
    return {*processor_says("flags", "Features", cpuinfo=cpuinfo).split()} & {*FEATURES}


def _memory() -> int | None:
    """Bytes of memory of the machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def gpus() -> Iterator[Finding]:
    """Every NVIDIA GPU with its driver, and what is made for it."""
    listed = nvidia_smi("name,driver_version,memory.total,compute_cap")
    if listed is None:
        yield Finding("gpu", "nvidia-smi finds no NVIDIA GPU (others are tried by name: docs/devices.md)")
        return
    installed = versions_of(PACKAGES)
    for number, line in enumerate(listed.split("; ")):
        yield gpu_finding(number, line, installed)


def gpu_finding(number: int, line: str, installed: Mapping[str, str]) -> Finding:
    """What nvidia-smi says of one GPU: name, driver, memory and compute capability, with commas between.

    `installed` are versions of packages: a problem where some need a later driver than there is.
    """
    name, driver, memory, capability = (line.split(", ") + [""] * 4)[:4]
    target = f"sm{capability.replace('.', '')}"
    engines = "TensorRT for RTX and TensorRT" if target in TARGETS else "TensorRT, not TensorRT for RTX"
    cuda = next((runs for least, runs in DRIVERS if _major(driver) >= least), None)
    facts = {"name": name, "driver": driver, "memory": memory, "target": target, "cuda": cuda}
    text = f"{name}, {memory}, driver {driver}, {target}"
    if cuda is None:
        hint = f"a driver of {DRIVERS[-1][0]} or later"
        return Finding(f"gpu {number}", f"{text}: too old for CUDA 12", "problem", hint, facts)
    later = [name for name in installed if needs_cuda_13(name, installed[name])]
    if later and _major(driver) < CUDA_13_DRIVER:
        hint = f"a driver of {CUDA_13_DRIVER} or later, or the packages for CUDA 12 (docs/tensorrt.md)"
        said = f"{text}: {cuda}, but {' and '.join(later)} {'needs' if len(later) == 1 else 'need'} CUDA 13"
        return Finding(f"gpu {number}", said, "problem", hint, facts)
    return Finding(f"gpu {number}", f"{text}: {cuda}; engines of {engines}", facts=facts)


DRIVERS = ((CUDA_13_DRIVER, "CUDA 13 and 12"), (525, "CUDA 12"))
"""From which driver on which CUDA runs (docs.nvidia.com/deploy/cuda-compatibility, minor versions)."""


def needs_cuda_13(package: str, version: str) -> bool:
    """Whether a package holds the runtime of CUDA 13, by its name or its version."""
    return package.endswith("-cu13") or (package == "cuda-bindings" and _major(version) >= 13)


def _major(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def cache() -> Iterator[Finding]:
    """What the cache holds, and whether it can be written."""
    folder = cache_folder()
    sizes = cache_sizes(folder)
    held = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()) or "empty"
    where = "named by TUDSR_CACHE" if os.environ.get("TUDSR_CACHE") else "the user's"
    try:
        # One that is not there yet will be made where the first folder above it is.
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        text = f"{where}, cannot be written ({error.strerror or error}): engines are compiled at every start"
        yield Finding("cache", text, "note", "TUDSR_CACHE=DIR", sizes)
        return
    yield Finding("cache", f"{where}: {held}", facts=sizes)


def cache_sizes(folder: Path) -> dict[str, int]:
    """Bytes below each of the folders in the cache."""
    sizes: dict[str, int] = {}
    for parent, _, names in os.walk(folder):
        top = Path(parent).relative_to(folder).parts[:1]
        for name in names:
            with suppress(OSError):
                size = os.lstat(Path(parent, name)).st_size
                sizes["/".join(top) or "files"] = sizes.get("/".join(top) or "files", 0) + size
    return sizes
