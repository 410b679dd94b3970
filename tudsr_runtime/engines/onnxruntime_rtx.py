"""ONNX Runtime with NVIDIA's TensorRT for RTX as a plug-in: compiled when a session opens, nothing is built.

Tiles travel through the host between its sessions: an ONNX Runtime without CUDA of its own, which the plug-in
asks for, binds no tensors on the GPU from Python, and what lies between the engines is small latents.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tudsr_runtime.engines.backend import (
    Engine,
    Precision,
    Target,
    Unavailable,
    as_engine_error,
    graph_precision,
    import_error,
    split_device,
)
from tudsr_runtime.engines.onnxruntime import BY_GRAPH, IDENTITY_GRAPH, as_engine, session_options
from tudsr_runtime.errors import DeviceError, OutputError
from tudsr_runtime.files import cache_folder, make_folder
from tudsr_runtime.installation import install_hint
from tudsr_runtime.manifest import Variant
from tudsr_runtime.planes import TileFunction
from tudsr_runtime.streams import raw_stderr_hidden

EXTRA = "rtx-provider"
SEE_DRIVER = "nvidia-smi shows GPUs and driver"
_REGISTERED: set[str] = set()
_LOCK = threading.Lock()


class OnnxRuntimeRtx:
    """The `onnxruntime-rtx` back end (see `tudsr_runtime.engines.backend.Backend`)."""

    def probe(self, device: str) -> Unavailable | None:
        """None if the plug-in is installed and starts on `device`."""
        if split_device(device)[0] != "cuda":
            return Unavailable("TensorRT for RTX runs on NVIDIA GPUs only", "--device cuda")
        try:
            _open_session(IDENTITY_GRAPH, device, threads=1)
        except DeviceError as error:
            return Unavailable(str(error), error.hint or install_hint(EXTRA))
        return None

    def precision(self, device: str, asked: str, offered: Sequence[str]) -> Precision:
        """What the graphs say is what runs (see `tudsr_runtime.engines.backend.Backend.precision`)."""
        del device
        return graph_precision(asked, offered)

    def load(self, graph: Path, variant: Variant, target: Target) -> Engine:
        """Load one graph (see `tudsr_runtime.engines.backend.Backend.load`)."""
        return as_engine(_open_session(str(graph), target.device, target.threads), graph, variant, target)

    def chain(self, engines: Sequence[Engine]) -> TileFunction | None:
        """There is no shorter way than through arrays."""
        del engines
        return None


def _open_session(graph: str | bytes, device: str, threads: int | None) -> Any:
    """A session on the GPU of that number; anything else is an error."""
    onnxruntime, name = _register()
    places = [one for one in onnxruntime.get_ep_devices() if one.ep_name == name]
    _, number = split_device(device)
    if number >= len(places):
        raise DeviceError(f"{name} finds {len(places)} GPUs here", hint=SEE_DRIVER)
    options = session_options(onnxruntime, threads)
    doing = "starting" if isinstance(graph, bytes) else f"loading {graph} with"
    try:
        options.add_provider_for_devices([places[number]], _provider_options())
        with raw_stderr_hidden():
            session = onnxruntime.InferenceSession(graph, options)
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base.
        by_graph = not isinstance(graph, bytes) and type(error).__name__ in BY_GRAPH
        raise as_engine_error(error, f"{doing} {name} on {device}", by_graph) from error
    if (active := session.get_providers()[0]) != name:
        raise DeviceError(f"{name} was asked for but ONNX Runtime started {active}")
    return session


def _register() -> tuple[Any, str]:
    """ONNX Runtime, which knows the plug-in from now on, and the plug-in's name."""
    try:
        import onnxruntime
        import onnxruntime_ep_nv_tensorrt_rtx as plugin
    except ImportError as error:
        raise import_error("ONNX Runtime's TensorRT for RTX", error, install_hint(EXTRA)) from error
    name = str(plugin.get_ep_name())
    with _LOCK:
        if name not in _REGISTERED:
            try:
                onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
            except Exception as error:  # ONNX Runtime's exceptions share no narrower base.
                failure = as_engine_error(error, f"loading {name}")
                failure.hint = failure.hint or SEE_DRIVER
                raise failure from error
            _REGISTERED.add(name)
    return onnxruntime, name


def _provider_options() -> dict[str, str]:
    """What it compiles on the GPU is kept, in a folder of the user's own: it is executable code."""
    folder = cache_folder() / "kernels" / "onnxruntime-rtx"
    try:
        make_folder(folder, private=True)
    except OutputError:
        return {}
    return {"nv_runtime_cache_path": str(folder)}


BACKEND = OnnxRuntimeRtx()
