"""ONNX Runtime: CPUs everywhere, NVIDIA GPUs through CUDA.

Half-precision graphs run on a CPU too, but ONNX Runtime has next to no half kernels there and casts around
every operator; a bundle's float32 variant over the same half weights is preferred.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from tudsr_runtime.bundle import TensorSpec, Variant
from tudsr_runtime.engines import Engine, Unavailable, as_engine_error
from tudsr_runtime.errors import BundleError, DeviceError
from tudsr_runtime.geometry import FloatArray

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
INSTALL = {"cpu": 'pip install "tudsr[cpu]"', "cuda": 'pip uninstall onnxruntime && pip install "tudsr[gpu]"'}
DTYPES = {"float32": "tensor(float)", "float16": "tensor(float16)"}
ERRORS_ONLY = 3

# y = Identity(x) on one float32: creating a session for it shows whether a provider really starts.
IDENTITY_GRAPH = (
    b'\x08\x08\x12\x00:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n'
    b"\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


class OnnxRuntime:
    """The `onnxruntime` back end (see `tudsr_runtime.engines.Backend`)."""

    def probe(self, device: str) -> Unavailable | None:
        """None if ONNX Runtime is installed and starts on `device`."""
        try:
            import onnxruntime
        except ImportError as error:
            return Unavailable(f"ONNX Runtime cannot be imported ({error})", INSTALL[device])
        provider = PROVIDERS[device]
        if provider not in onnxruntime.get_available_providers():
            return Unavailable(f"the installed ONNX Runtime has no {provider}", INSTALL[device])
        try:
            _open_session(IDENTITY_GRAPH, device, threads=1)
        except DeviceError as error:
            return Unavailable(str(error), error.hint or INSTALL[device])
        return None

    def preferred_precision(self, device: str) -> str | None:
        """On a CPU float32: half has next to no kernels there and pays for casts."""
        return "fp32" if device == "cpu" else None

    def load(self, graph: Path, variant: Variant, device: str, threads: int | None) -> Engine:
        """Load one graph (see `tudsr_runtime.engines.Backend.load`)."""
        session = _open_session(str(graph), device, threads)
        _check_interface(graph, "input", session.get_inputs(), variant.inputs)
        _check_interface(graph, "output", session.get_outputs(), variant.outputs)
        return SessionEngine(session, graph.parent.name or graph.name, variant)


class SessionEngine:
    """An ONNX Runtime session as an `Engine`; sessions may be run from several threads."""

    def __init__(self, session: Any, component: str, variant: Variant) -> None:
        self._session = session
        self._component = component
        self._input = variant.inputs[0]
        self._output = variant.outputs[0].name

    def run(self, x: FloatArray) -> FloatArray:
        """Run the graph (see `Engine.run`)."""
        feed = {self._input.name: x.astype(self._input.dtype, copy=False)}
        try:
            (y,) = self._session.run([self._output], feed)
        except Exception as error:  # ONNX Runtime's exceptions share no narrower base.
            raise as_engine_error(error, f"running {self._component} with ONNX Runtime") from error
        result: FloatArray = y.astype(np.float32, copy=False)
        return result

    def close(self) -> None:
        """Release the session."""
        self._session = None


def _open_session(graph: str | bytes, device: str, threads: int | None) -> Any:
    """A session whose first provider is the one that was asked for; anything else is an error."""
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(f"ONNX Runtime cannot be imported ({error})", hint=INSTALL[device]) from None
    if device == "cuda":
        _preload_cuda(onnxruntime)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads or 0
    doing = "starting ONNX Runtime" if isinstance(graph, bytes) else f"loading {graph}"
    try:
        # Without enable_fallback=0 a failing CUDA session would go on silently on the CPU.
        session = onnxruntime.InferenceSession(
            graph, options, providers=[PROVIDERS[device]], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base.
        raise as_engine_error(error, f"{doing} on {device}") from error
    active = session.get_providers()[0]
    if active != PROVIDERS[device]:
        raise DeviceError(
            f"device {device} was asked for but ONNX Runtime started {active}",
            hint=f"{INSTALL[device]}, and check the GPU driver with nvidia-smi",
        )
    return session


def _preload_cuda(onnxruntime: Any) -> None:
    """Let ONNX Runtime find the CUDA libraries that pip installed; opening a session says what is missing."""
    with contextlib.suppress(AttributeError, OSError):
        onnxruntime.preload_dlls()


def _check_interface(graph: Path, side: str, actual: list[Any], listed: tuple[TensorSpec, ...]) -> None:
    found = [(node.name, node.type, list(node.shape)) for node in actual]
    expected = [(spec.name, DTYPES[spec.dtype], list(spec.shape)) for spec in listed]
    if found != expected:
        raise BundleError(f"{graph}: its {side} is {found}, the manifest says {expected}")


BACKEND = OnnxRuntime()
