"""Back ends that run the graphs of a bundle, behind one small protocol.

A back end is a module of this package with a `BACKEND`; adding one means adding its file and a line in
`BACKENDS`. The engine library is imported only when the back end is asked for.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from tudsr_runtime.bundle import Bundle, Stage, Variant
from tudsr_runtime.errors import DeviceError, MemoryExhausted, TudsrError, UsageError
from tudsr_runtime.geometry import FloatArray
from tudsr_runtime.manifest import PRECISIONS

TileFunction = Callable[[FloatArray], FloatArray]
"""One tile: float32 (1, 3, T, T) in [-1, 1] to (1, 3, T, T); it need not clamp."""

BACKENDS = {
    "openvino": "tudsr_runtime.engines.openvino",
    "onnxruntime": "tudsr_runtime.engines.onnxruntime",
    "tensorrt": "tudsr_runtime.engines.tensorrt.backend",
    "tensorrt-rtx": "tudsr_runtime.engines.tensorrt_rtx",
}
"""Name of each back end and the module that holds it."""
PREFERENCE = (("onnxruntime", "cuda"), ("openvino", "cpu"), ("onnxruntime", "cpu"))
"""What `auto` tries, the fastest first."""
ON_REQUEST = (
    ("openvino", "gpu"),
    ("openvino", "npu"),
    ("onnxruntime", "coreml"),
    ("onnxruntime", "directml"),
    ("onnxruntime", "migraphx"),
)
"""What runs only where its device is named: nobody has tested these yet (docs/devices.md)."""
BY_NAME = (("tensorrt", "cuda"), ("tensorrt-rtx", "cuda"))
"""What runs only where its back end is named: it needs engines that are built first (docs/tensorrt.md)."""
DEVICES = ("cuda", "cpu", "gpu", "npu", "coreml", "directml", "migraphx")
AUTO = "auto"
GRAPHS = {"bf16": "fp32"}
"""The graphs to load for an arithmetic that graphs are not stored in: the library lowers these itself."""
SMALL_MODEL = 100_000_000
"""Bytes of weights up to which a model counts as small (see `Target`)."""

_OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|bad.?alloc|memory allocation|AllocateRaw|not enough memory|"
    r"available memory of \d+ is smaller|OUT_OF_(HOST_|DEVICE_)?MEMORY|OUT_OF_RESOURCES|ALLOC_FAILED",
    re.IGNORECASE,
)


class Engine(Protocol):
    """One graph, loaded on a device. `run` may be called from several threads."""

    parallel: int
    """How many calls at a time are worth making: 1 where one call fills the device."""

    def run(self, x: FloatArray) -> FloatArray:
        """Run the graph on a float32 NCHW array of its one shape; float32 NCHW comes back.

        A half-precision graph converts inside.

        Raises:
            MemoryExhausted: the device has too little memory.
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
    notify: Callable[[str], None] = field(default=lambda _: None, compare=False)


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
            DeviceError: the device is not the one that would run it, or the library refused the graph.
            BundleError: the graph's inputs and outputs are not those that the manifest lists.
            MemoryExhausted: it does not fit into memory.
        """

    def chain(self, engines: Sequence[Engine]) -> TileFunction | None:
        """One tile through these engines of this back end without a stop on the host; None: there is no
        shorter way than through arrays."""


@dataclass(frozen=True)
class Choice:
    """The back end and device that will run, and why; with the arithmetic once the bundle is known.

    `engines` is that of `Target`.
    """

    backend: str
    device: str
    reason: str
    precision: Precision | None = None
    engines: Path | None = None

    def __str__(self) -> str:
        arithmetic = f", {self.precision.name} ({self.precision.reason})" if self.precision else ""
        return f"{self.backend} on {self.device} ({self.reason}){arithmetic}"


class StageRunner:
    """Encoder, UNet and decoder of one stage as one unit, the way stages are trained.

    `strength` s in [0, 1] decodes z_L + s (z_H - z_L): 1 is the model's result, 0 what the autoencoder alone
    makes of the input.
    """

    def __init__(
        self,
        encoder: Engine,
        unet: Engine,
        decoder: Engine,
        strength: float = 1.0,
        chain: TileFunction | None = None,
    ) -> None:
        self.engines = (encoder, unet, decoder)
        self._strength = np.float32(strength)
        self._chain = chain
        self.parallel = min(engine.parallel for engine in self.engines)
        """How many tiles at a time are worth running."""

    def run(self, x: FloatArray) -> FloatArray:
        """One tile: (1, 3, T, T) float32 in [-1, 1] to (1, 3, T, T), not clamped. Raises as `Engine.run`."""
        encoder, unet, decoder = self.engines
        if self._strength == 1:
            return self._chain(x) if self._chain else decoder.run(unet.run(encoder.run(x)))
        z_L = encoder.run(x)
        if self._strength == 0:
            return decoder.run(z_L)
        return decoder.run(z_L + self._strength * (unet.run(z_L) - z_L))


def select(
    backend: str = AUTO, device: str = AUTO, precision: str = AUTO, offered: Sequence[str] = ("fp32",)
) -> Choice:
    """Choose where to run. What is named is used or is an error; only `auto` looks further.

    Args:
        backend: "auto" or a name in `BACKENDS`.
        device: "auto" or a name in `DEVICES`, with the number of one of several behind it: "cuda:1".
        precision: "auto" or a name in `tudsr_runtime.manifest.PRECISIONS`.
        offered: the precisions of the bundle's graphs, the main one first.

    Raises:
        UsageError: no back end, device or precision of that name.
        DeviceError: what was asked for is not available here.
    """
    kind, _ = split_device(device)
    _check_name("backend", backend, tuple(BACKENDS))
    _check_name("device", kind, DEVICES)
    _check_name("precision", precision, PRECISIONS)
    refused: list[Unavailable] = []
    for name, place in _candidates(backend, kind):
        place = place if device == AUTO else device
        unavailable = open_backend(name).probe(place)
        if unavailable is None:
            arithmetic = open_backend(name).precision(place, precision, offered)
            return Choice(name, place, _reason(backend, device, refused), arithmetic)
        refused.append(unavailable)
    if not refused:
        raise DeviceError(f"back end {backend} does not run on {device}", hint=f"--device {AUTO}")
    last = refused[-1]
    raise DeviceError(last.problem, hint=last.hint)


def split_device(device: str) -> tuple[str, int]:
    """Kind and number of a device: ("cuda", 1) of "cuda:1", ("cpu", 0) of "cpu". Raises UsageError."""
    kind, colon, number = device.partition(":")
    if colon and not re.fullmatch(r"\d{1,3}", number, re.ASCII):
        raise UsageError(f"device {device!r} must end in a number behind its colon, such as cuda:1")
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


def open_backend(name: str) -> Backend:
    """The back end of that name, which must be one of `BACKENDS`; its engine library is not imported yet."""
    backend: Backend = importlib.import_module(BACKENDS[name]).BACKEND
    return backend


def load_stage(
    bundle: Bundle,
    stage: Stage,
    choice: Choice,
    threads: int | None = None,
    loaded: dict[str, Engine] | None = None,
    strength: float = 1.0,
    tile: int | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> StageRunner:
    """Load what `stage` needs. Components already in `loaded` are shared, new ones are added to it.

    `strength` is that of `StageRunner`; `tile` in px is the bundle's own unless given; `notify` is told what
    was done otherwise than planned. Raises as `Backend.load`.
    """
    loaded = {} if loaded is None else loaded
    backend = open_backend(choice.backend)
    precision = choice.precision or backend.precision(choice.device, AUTO, bundle.precisions)
    small = bundle.bytes <= SMALL_MODEL
    target = Target(choice.device, precision.name, threads, small, choice.engines, notify)
    graph = GRAPHS.get(precision.name, precision.name)
    for component in (stage.encoder, stage.unet, stage.decoder):
        if component not in loaded:
            variant = bundle.variant(component, preferred=graph, tile=tile)
            loaded[component] = backend.load(bundle.path(variant), variant, target)
    engines = (loaded[stage.encoder], loaded[stage.unet], loaded[stage.decoder])
    return StageRunner(*engines, strength, backend.chain(engines))


def as_engine_error(error: Exception, doing: str) -> TudsrError:
    """The error to raise for an engine library's exception; these name their cause only in their text."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = f"{doing}: {lines[0][:300]}"
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return MemoryExhausted(
            f"out of memory while {text}", hint="close other programs, or on a GPU: --device cpu"
        )
    return DeviceError(f"failed while {text}")


def _candidates(backend: str, kind: str) -> list[tuple[str, str]]:
    """The pairs of back end and device that fit, the best first."""
    named = () if backend == AUTO else BY_NAME
    pairs = (*PREFERENCE, *named, *(() if kind == AUTO else ON_REQUEST))
    return [(name, place) for name, place in pairs if backend in (AUTO, name) and kind in (AUTO, place)]


def _check_name(option: str, name: str, known: tuple[str, ...]) -> None:
    if name != AUTO and name not in known:
        raise UsageError(f"no {option} is called {name!r}; there are {', '.join((AUTO, *known))}")


def _reason(backend: str, device: str, refused: list[Unavailable]) -> str:
    if refused:
        return "; ".join(unavailable.problem for unavailable in refused)
    return "as asked" if AUTO not in (backend, device) else "the fastest available"


__all__ = [
    "AUTO",
    "BACKENDS",
    "BY_NAME",
    "DEVICES",
    "ON_REQUEST",
    "PREFERENCE",
    "Backend",
    "Choice",
    "Engine",
    "Precision",
    "StageRunner",
    "Target",
    "TileFunction",
    "Unavailable",
    "as_engine_error",
    "graph_precision",
    "load_stage",
    "open_backend",
    "select",
    "split_device",
]
