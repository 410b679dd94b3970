"""ONNX Runtime: CPUs everywhere, NVIDIA GPUs through CUDA, other devices through their providers.

Half-precision graphs run on a CPU too, but ONNX Runtime has next to no half kernels there and casts around
every operator; a bundle's float32 variant over the same half weights is preferred.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tudsr_runtime.engines.backend import (
    End,
    Engine,
    Precision,
    Target,
    Unavailable,
    as_engine_error,
    check_interface,
    graph_precision,
    import_error,
    split_device,
)
from tudsr_runtime.engines.onnxruntime_chain import BoundChain, Session, ended_by, named, run_options
from tudsr_runtime.errors import BundleError, DeviceError
from tudsr_runtime.installation import install_hint
from tudsr_runtime.manifest import Variant
from tudsr_runtime.planes import FloatArray, TileFunction
from tudsr_runtime.streams import raw_stderr_hidden

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
}
ONE_GRAPH = frozenset({"coreml", "migraphx"})
"""Devices that compile parts of a graph and leave the rest to the CPU, which therefore stands behind them."""
CUDA_OPTIONS = {"prefer_nhwc": "1", "use_tf32": "0"}
"""Tensor cores convolve with the channels last; float32 is float32, in a half graph's islands too."""
ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
NOTHING_BUT_THE_END = 4
"""The severity of log lines that ONNX Runtime writes to stderr: its exceptions say the same."""
BY_GRAPH = frozenset({"InvalidGraph", "InvalidProtobuf", "NoModel", "NotImplemented"})
"""Exceptions of ONNX Runtime that no device is to blame for."""

# y = Identity(x) on one float32: creating a session for it shows whether a provider really starts.
IDENTITY_GRAPH = (
    b'\x08\x08\x12\x00:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n'
    b"\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


class OnnxRuntime:
    """The `onnxruntime` back end (see `tudsr_runtime.engines.backend.Backend`)."""

    def probe(self, device: str) -> Unavailable | None:
        """None if ONNX Runtime is installed and starts on `device`."""
        kind, _ = split_device(device)
        provider = PROVIDERS[kind]
        try:
            if provider not in _library(kind).get_available_providers():
                return Unavailable(f"the installed ONNX Runtime has no {provider}", _how_to_install(kind))
            _open_session(IDENTITY_GRAPH, device, threads=1)
        except DeviceError as error:
            return Unavailable(str(error), error.hint or _how_to_install(kind))
        return None

    def precision(self, device: str, asked: str, offered: Sequence[str]) -> Precision:
        """The graph's own. On a CPU float32: half has next to no kernels there and pays for casts."""
        return graph_precision(asked, offered, "fp32" if device == "cpu" else None)

    def load(self, graph: Path, variant: Variant, target: Target) -> Engine:
        """Load one graph (see `tudsr_runtime.engines.backend.Backend.load`)."""
        return as_engine(_open_session(str(graph), target.device, target.threads), graph, variant, target)

    def chain(self, engines: Sequence[Engine]) -> TileFunction | None:
        """Run a tile that stays on the device from the first engine to the last; None but on CUDA."""
        ours = [engine for engine in engines if isinstance(engine, SessionEngine)]
        return ours[0].joined(ours).run if split_device(ours[0].device)[0] == "cuda" else None


class SessionEngine:
    """An ONNX Runtime session as an `Engine`; sessions may be run from several threads."""

    parallel = 1

    def __init__(self, session: Any, component: str, variant: Variant, device: str) -> None:
        self.loaded = Session(session, component, variant.inputs[0], variant.outputs[0])
        self.device = device
        self._chains: dict[tuple[int, ...], BoundChain] = {}

    def run(self, x: FloatArray) -> FloatArray:
        """Run the graph (see `Engine.run`)."""
        one = self.loaded
        feed = {one.source.name: x.astype(one.source.dtype, copy=False)}
        options = run_options()
        with named(f"running {one.component}", by_graph=self.device == "cpu"), ended_by(options):
            (y,) = one.session.run([one.target.name], feed, options)
        if y.shape != one.target.shape:
            raise BundleError(
                f"{one.component} gives {y.shape}, not the {one.target.shape} that its graph announces"
            )
        result: FloatArray = y.astype(np.float32, copy=False)
        return result

    def joined(self, engines: Sequence[SessionEngine]) -> BoundChain:
        """This engine and those behind it as one chain, made once: each picture puts its stages together."""
        sessions = [engine.loaded for engine in engines]
        key = tuple(map(id, sessions))
        return self._chains.setdefault(key, BoundChain(sessions, self.device))

    def close(self) -> None:
        """Release the session, and the tensors of the chains that begin with it."""
        self.loaded.session = None
        self._chains.clear()


def as_engine(session: Any, graph: Path, variant: Variant, target: Target) -> SessionEngine:
    """The session of a graph as an engine. Raises BundleError if it is not the graph of the manifest."""
    check_interface(str(graph), _ends(session.get_inputs()), _ends(session.get_outputs()), variant)
    return SessionEngine(session, graph.parent.name or graph.name, variant, target.device)


def _library(kind: str) -> Any:
    """The module `onnxruntime`. Raises DeviceError, with how to install it for that kind of device."""
    try:
        import onnxruntime
    except ImportError as error:
        raise import_error("ONNX Runtime", error, _how_to_install(kind)) from error
    return onnxruntime


def _open_session(graph: str | bytes, device: str, threads: int | None) -> Any:
    """A session whose first provider is the one that was asked for; anything else is an error."""
    kind, number = split_device(device)
    onnxruntime = _library(kind)
    if kind == "cuda":
        _preload_cuda(onnxruntime)
    options = session_options(onnxruntime, threads)
    doing = "starting ONNX Runtime" if isinstance(graph, bytes) else f"loading {graph}"
    try:
        # Without enable_fallback=0 a failing CUDA session would go on silently on the CPU.
        with raw_stderr_hidden():
            session = onnxruntime.InferenceSession(
                graph, options, providers=_providers(kind, number), enable_fallback=0
            )
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base.
        ours = isinstance(graph, bytes)
        by_graph = not ours and (device == "cpu" or type(error).__name__ in BY_GRAPH)
        raise as_engine_error(error, f"{doing} on {device}", by_graph) from error
    active = session.get_providers()[0]
    if active != PROVIDERS[kind]:
        raise DeviceError(
            f"device {device} was asked for but ONNX Runtime started {active}",
            hint=f"{_how_to_install(kind)}; check the driver too",
        )
    return session


def session_options(onnxruntime: Any, threads: int | None) -> Any:
    """What every session is opened with."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = NOTHING_BUT_THE_END
    options.intra_op_num_threads = threads or 0
    # The arena keeps all that it ever held, and a tile is no faster for it.
    options.enable_cpu_mem_arena = False
    return options


def _how_to_install(kind: str) -> str:
    if kind == "cuda":
        return f"pip uninstall onnxruntime && {install_hint('gpu')}"
    if kind == "directml":
        return "on Windows: pip uninstall onnxruntime && pip install onnxruntime-directml"
    if kind == "migraphx":
        return "with ROCm: pip uninstall onnxruntime && pip install onnxruntime-migraphx"
    return install_hint("cpu") + (" on a Mac, whose ONNX Runtime includes it" if kind == "coreml" else "")


def _providers(kind: str, number: int) -> list[Any]:
    if kind == "cpu":
        return [PROVIDERS["cpu"]]
    options = {"device_id": str(number)} if kind in ("cuda", "directml", "migraphx") else {}
    if kind == "cuda":
        options |= CUDA_OPTIONS
    behind = [PROVIDERS["cpu"]] if kind in ONE_GRAPH else []
    return [(PROVIDERS[kind], options), *behind]


def _preload_cuda(onnxruntime: Any) -> None:
    """Let ONNX Runtime find the CUDA libraries that pip installed; opening a session says what is missing."""
    with contextlib.suppress(AttributeError, OSError):
        onnxruntime.preload_dlls()


def _ends(nodes: list[Any]) -> list[End]:
    return [(node.name, ONNX_TYPES.get(node.type, node.type), tuple(node.shape)) for node in nodes]


BACKEND = OnnxRuntime()
