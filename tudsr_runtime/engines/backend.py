"""What a back end is: the protocol that each engine library is behind, and what all of them share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tudsr_runtime.errors import BundleError, DeviceError, MemoryExhausted, TudsrError, UsageError, quoted
from tudsr_runtime.machine import as_exhausted
from tudsr_runtime.manifest import TensorSpec, Variant
from tudsr_runtime.planes import FloatArray, TileFunction

Notify = Callable[[str], None]
"""Told in plain words what was done otherwise than planned."""
End = tuple[str, str, tuple[object, ...]]
"""An input or output as a library describes it: name, type ("float32"), shape."""

AUTO = "auto"
_OUT_OF_MEMORY = re.compile(
    r"out.?of.?(host.|device.)?memory|failed to allocate|could not be allocated|bad.?alloc|memory allocation|"
    r"AllocateRaw|not enough memory|insufficient.(gpu.)?memory|available memory of \d+ is smaller|"
    r"cannot allocate|failed to map segment|resource temporarily unavailable|pthread_create failed|"
    r"OUT_OF_RESOURCES|ALLOC_FAILED",
    re.IGNORECASE,
)


_NOT_TELLING = re.compile(
    r"Exception from \S+:\d+:$|Check '.*' failed at \S+:\d+:$|FrontEnd API failed|Loading input model$|"
    r"Model wasn't fully converted|Summary:$"
)
"""Lines of OpenVINO's exceptions that say where it happened, not what."""
_IN_SOURCE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+:\d+ .*?\) (?=[A-Z\[])|\b\w+\.cc:\d+ \w+ "
)


LIBRARIES = {
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-rtx": "ONNX Runtime's TensorRT for RTX",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT for RTX",
}
PLACES = {
    "cpu": "the CPU",
    "cuda": "the NVIDIA GPU",
    "gpu": "the Intel GPU",
    "npu": "the Intel NPU",
    "coreml": "Core ML",
    "directml": "the GPU, by DirectML",
    "migraphx": "the AMD GPU",
}
"""What people call the back ends and the kinds of device."""


class Engine(Protocol):
    """One graph, loaded on a device. `run` may be called from several threads."""

    parallel: int
    """How many calls at a time are worth making: 1 where one call fills the device."""

    def run(self, x: FloatArray) -> FloatArray:
        """Run the graph on a float32 NCHW array of its one shape; float32 NCHW comes back.

        A half-precision graph converts inside.

        Raises:
            MemoryExhausted: the device has too little memory.
            BundleError: the graph cannot be computed.
            DeviceError: the engine library failed otherwise.
        """

    def close(self) -> None:
        """Release the device's memory; the engine cannot run afterwards."""


@dataclass(frozen=True)
class Unavailable:
    """Why a back end cannot be used on a device, and what would mend it."""

    problem: str
    hint: str


@dataclass(frozen=True)
class Precision:
    """The arithmetic that a back end will use: "fp32", "bf16" or "fp16", and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Target:
    """Where and how a graph is to run: device ("cuda", or "cuda:1" for the second), arithmetic, CPU threads.

    `small`: the model is so small that several tiles at a time are worth their memory. `engines`: the folder
    of TensorRT's engines, None for the user's cache. `notify` is told what was done otherwise than planned.
    """

    device: str
    precision: str
    threads: int | None = None
    small: bool = False
    engines: Path | None = None
    notify: Notify = field(default=lambda _: None, compare=False)


class Backend(Protocol):
    """An engine library."""

    def probe(self, device: str) -> Unavailable | None:
        """None if graphs can run on `device` (such as "cpu" or "cuda:1") here, else why not."""

    def precision(self, device: str, asked: str, offered: Sequence[str]) -> Precision:
        """The arithmetic on `device` for a bundle that holds graphs of the precisions `offered`, the main
        one first.

        `asked` is "auto" or the one that it has to be.

        Raises:
            DeviceError: this back end, this device or the bundle does not allow what was asked.
        """

    def load(self, graph: Path, variant: Variant, target: Target) -> Engine:
        """Load one graph.

        Raises:
            DeviceError: the device is not the one that would run it, or refused the graph.
            BundleError: the graph is damaged or of a kind that the library does not know, or its inputs and
                outputs are not those that the manifest lists.
            MemoryExhausted: it does not fit into memory.
        """

    def chain(self, engines: Sequence[Engine]) -> TileFunction | None:
        """One tile through these engines of this back end without a stop on the host; None: there is no
        shorter way than through arrays."""


@dataclass(frozen=True)
class Choice:
    """The back end and device that will run, and why; with the arithmetic once the bundle is known.

    `engines` is that of `Target`; `faster` says how to install a back end that is preferred on this device.
    """

    backend: str
    device: str
    reason: str
    precision: Precision | None = None
    engines: Path | None = None
    faster: str | None = None

    def in_short(self, model: str) -> str:
        """A line for people: the model, what runs it where, and what would run it faster on that device."""
        kind, _, number = self.device.partition(":")
        place = PLACES.get(kind, kind) + (f" {number}" if number else "")
        line = f"{model}, with {LIBRARIES.get(self.backend, self.backend)} on {place}"
        return f"{line}. Faster: {self.faster}" if self.faster else line

    def __str__(self) -> str:
        arithmetic = f", {self.precision.name} ({self.precision.reason})" if self.precision else ""
        return f"{self.backend} on {self.device} ({self.reason}){arithmetic}"


def split_device(device: str) -> tuple[str, int]:
    """Kind and number of a device: ("cuda", 1) of "cuda:1", ("cpu", 0) of "cpu". Raises UsageError."""
    kind, colon, number = device.partition(":")
    if colon and not re.fullmatch(r"\d{1,3}", number, re.ASCII):
        raise UsageError(f"device {quoted(device)} must end in a number behind its colon, such as cuda:1")
    return kind, int(number or 0)


def graph_precision(asked: str, offered: Sequence[str], preferred: str | None = None) -> Precision:
    """The precision where the graph alone decides what is computed: the one asked for, else `preferred` if
    the bundle offers it, else the bundle's main one.

    Raises:
        DeviceError: the bundle holds no graph of the precision asked for.
    """
    if asked == AUTO:
        found = preferred if preferred in offered else None
        return Precision(found, "the fastest here") if found else Precision(offered[0], "the bundle's")
    if asked not in offered:
        raise DeviceError(
            f"the bundle has no {asked} graphs, only {', '.join(offered)}", hint=f"--precision {offered[0]}"
        )
    return Precision(asked, "as asked")


def lacks_memory(text: str) -> bool:
    """Whether an engine library's words say that memory is short; it is all that there is to go by."""
    return _OUT_OF_MEMORY.search(text) is not None


def as_engine_error(error: Exception, doing: str, by_graph: bool = False) -> TudsrError:
    """The error to raise for an engine library's exception; these name their cause only in their text.

    `by_graph`: the device is beyond doubt, so that what is no lack of memory is the graph's own fault.
    """
    said = _said(error)
    if isinstance(error, MemoryError) or as_exhausted(error) or lacks_memory(said):
        return MemoryExhausted(
            f"out of memory while {doing}: {_cause(said, _OUT_OF_MEMORY) or 'MemoryError'}",
            hint="close other programs, or on a GPU: --device cpu",
        )
    text = f"failed while {doing}: {_cause(said) or type(error).__name__}"
    if by_graph:
        return BundleError(text, hint="get or export the bundle again; tudsr runs only its own graphs")
    return DeviceError(text)


def import_error(library: str, error: ImportError, hint: str) -> TudsrError:
    """The error to raise where a library cannot be imported: it is not there, or memory is short."""
    text = f"{library} cannot be imported ({error})"
    if _OUT_OF_MEMORY.search(str(error)):
        return MemoryExhausted(f"out of memory: {text}", hint="close other programs, or raise ulimit -v")
    return DeviceError(text, hint=hint)


def _said(error: Exception) -> str:
    """The text of a library's exception; of one that could not be made, as its text is none, the bytes."""
    if isinstance(error, UnicodeDecodeError):
        return error.object.decode("utf-8", errors="replace").strip()
    return str(error).strip()


def _cause(said: str, about: re.Pattern[str] | None = None) -> str:
    """The lines that say what is wrong, without places in the library's source; those `about` it, if any."""
    lines = [line.strip() for line in _IN_SOURCE.sub("", said).splitlines()]
    telling = [line for line in lines if line and not _NOT_TELLING.match(line)]
    if about is not None:
        telling = [line for line in telling if about.search(line)][:1] or telling[:1]
    return " ".join(telling[:4])[:300]


def as_end(spec: TensorSpec) -> End:
    """An input or output of the manifest, to be compared with a library's."""
    return spec.name, spec.dtype, spec.shape


def check_interface(where: str, inputs: Iterable[End], outputs: Iterable[End], variant: Variant) -> None:
    """Raise BundleError where inputs and outputs are not those that the manifest lists of `variant`.

    `where` names what has them, such as the graph's file.
    """
    for side, ends, specs in (("input", inputs, variant.inputs), ("output", outputs, variant.outputs)):
        found, listed = list(ends), list(map(as_end, specs))
        if found != listed:
            raise BundleError(f"{where}: its {side} is {found}, the manifest says {listed}")
