"""Back ends that run the graphs of a bundle, behind one small protocol.

A back end is a module of this package with a `BACKEND`; adding one means adding its file and a line in
`BACKENDS`. The engine library is imported only when the back end is asked for.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tudsr_runtime.bundle import Bundle, Stage, Variant
from tudsr_runtime.errors import DeviceError, MemoryExhausted, TudsrError, UsageError
from tudsr_runtime.geometry import FloatArray

BACKENDS = {"onnxruntime": "tudsr_runtime.engines.onnxruntime"}
"""Name of each back end and the module that holds it."""
PREFERENCE = (("onnxruntime", "cuda"), ("onnxruntime", "cpu"))
"""What `auto` tries, the fastest first."""
DEVICES = ("cuda", "cpu")
AUTO = "auto"

_OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|bad.?alloc|memory allocation|AllocateRaw|"
    r"available memory of \d+ is smaller|OUT_OF_MEMORY|ALLOC_FAILED",
    re.IGNORECASE,
)


class Engine(Protocol):
    """One graph, loaded on a device. `run` may be called from several threads."""

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


class Backend(Protocol):
    """An engine library."""

    def probe(self, device: str) -> Unavailable | None:
        """None if graphs can run on `device` ("cpu" or "cuda") here, else why not."""

    def preferred_precision(self, device: str) -> str | None:
        """The arithmetic that is fastest on `device`; None: whatever the bundle lists first."""

    def load(self, graph: Path, variant: Variant, device: str, threads: int | None) -> Engine:
        """Load one graph; `threads` is the number of CPU threads, None for the library's own choice.

        Raises:
            DeviceError: the device is not the one that would run it, or the library refused the graph.
            BundleError: the graph's inputs and outputs are not those that the manifest lists.
            MemoryExhausted: it does not fit into memory.
        """


@dataclass(frozen=True)
class Choice:
    """The back end and device that will run, and why."""

    backend: str
    device: str
    reason: str


class StageRunner:
    """Encoder, UNet and decoder of one stage as one unit, the way stages are trained."""

    def __init__(self, encoder: Engine, unet: Engine, decoder: Engine) -> None:
        self._engines = (encoder, unet, decoder)

    def run(self, x: FloatArray) -> FloatArray:
        """One tile: (1, 3, T, T) float32 in [-1, 1] to (1, 3, T, T), not clamped. Raises as `Engine.run`."""
        for engine in self._engines:
            x = engine.run(x)
        return x


def select(backend: str = AUTO, device: str = AUTO) -> Choice:
    """Choose where to run. What is named is used or is an error; only `auto` looks further.

    Raises:
        UsageError: no back end or device of that name.
        DeviceError: what was asked for is not available here.
    """
    _check_name("backend", backend, tuple(BACKENDS))
    _check_name("device", device, DEVICES)
    fitting = [(b, d) for b, d in PREFERENCE if backend in (AUTO, b) and device in (AUTO, d)]
    refused: list[Unavailable] = []
    for name, place in fitting:
        unavailable = open_backend(name).probe(place)
        if unavailable is None:
            return Choice(name, place, _reason(backend, device, refused))
        refused.append(unavailable)
    if not refused:
        raise DeviceError(f"back end {backend} does not run on {device}", hint=f"--device {AUTO}")
    last = refused[-1]
    raise DeviceError(last.problem, hint=last.hint)


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
) -> StageRunner:
    """Load what `stage` needs. Components already in `loaded` are shared, new ones are added to it.

    Raises as `Backend.load`.
    """
    loaded = {} if loaded is None else loaded
    for component in (stage.encoder, stage.unet, stage.decoder):
        if component not in loaded:
            backend = open_backend(choice.backend)
            variant = bundle.variant(component, preferred=backend.preferred_precision(choice.device))
            loaded[component] = backend.load(bundle.path(variant), variant, choice.device, threads)
    return StageRunner(loaded[stage.encoder], loaded[stage.unet], loaded[stage.decoder])


def as_engine_error(error: Exception, doing: str) -> TudsrError:
    """The error to raise for an engine library's exception; these name their cause only in their text."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = f"{doing}: {lines[0][:300]}"
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)):
        return MemoryExhausted(
            f"out of memory while {text}", hint="close other programs, or on a GPU: --device cpu"
        )
    return DeviceError(f"failed while {text}")


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
    "DEVICES",
    "PREFERENCE",
    "Backend",
    "Choice",
    "Engine",
    "StageRunner",
    "Unavailable",
    "as_engine_error",
    "load_stage",
    "open_backend",
    "select",
]
