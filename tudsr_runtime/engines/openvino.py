"""OpenVINO: the fastest on CPUs; Intel GPUs and NPUs by name.

It reads the bundle's ONNX as it is. What it computes in is set here and never left to its default: a half
bundle runs in bfloat16 on processors where that is faster, a float32 bundle in float32.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tudsr_runtime.calls import under_way
from tudsr_runtime.engines.backend import (
    AUTO,
    End,
    Engine,
    Precision,
    Target,
    Unavailable,
    as_engine_error,
    check_interface,
    import_error,
    split_device,
)
from tudsr_runtime.engines.openvino_weights import map_weights
from tudsr_runtime.errors import DeviceError, OutputError
from tudsr_runtime.files import cache_folder, make_folder
from tudsr_runtime.installation import install_hint
from tudsr_runtime.machine import CPUINFO, processor_says, processors
from tudsr_runtime.manifest import Variant
from tudsr_runtime.planes import FloatArray, TileFunction
from tudsr_runtime.streams import raw_stderr_hidden

PLUGINS = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
DRIVERS = "install the driver of the Intel GPU or NPU; OpenVINO's documentation says which"
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}
ELEMENT_TYPES = {"f32": "float32", "f16": "float16"}
UNLIMITED = ("", "ALL", "DEFAULT")
MAX_STREAMS = 4
"""Tiles at a time of a small model on a CPU; each stream holds its own activations."""


class OpenVino:
    """The `openvino` back end (see `tudsr_runtime.engines.backend.Backend`)."""

    def probe(self, device: str) -> Unavailable | None:
        """None if OpenVINO is installed, knows `device`, and may use all of the processor."""
        if (limit := processor_limit()) is not None:
            return Unavailable(f"OpenVINO crashes where {limit} limits the processor", f"unset {limit}")
        try:
            core = open_core()
        except DeviceError as error:
            return Unavailable(str(error), error.hint or install_hint("openvino"))
        if split_device(device)[0] == "cpu":
            return None
        plugin, there = _plugin(device), core.available_devices
        if plugin in there or f"{plugin}.0" in there:
            return None
        hint = f"{DRIVERS}; an NVIDIA GPU is --device cuda" if plugin == "GPU" else DRIVERS
        return Unavailable(f"OpenVINO finds no Intel {plugin} here, only {', '.join(there)}", hint)

    def precision(self, device: str, asked: str, offered: Sequence[str]) -> Precision:
        """Half bundles in bf16 on a CPU where that is faster and in fp16 on a GPU or NPU, else fp32."""
        has = _property(device, "OPTIMIZATION_CAPABILITIES")
        if asked != AUTO:
            if CAPABILITIES[asked] not in has:
                raise DeviceError(f"{device} does not compute in {asked}", hint="--precision auto")
            return Precision(asked, "as asked")
        if offered[0] == "fp32":
            return Precision("fp32", "the bundle's")
        on_cpu = split_device(device)[0] == "cpu"
        fast = "bf16" if on_cpu else "fp16"
        if CAPABILITIES[fast] not in has:
            return Precision("fp32", f"the processor has no {fast}")
        if on_cpu and not _bf16_pays(_property(device, "FULL_DEVICE_NAME")):
            return Precision("fp32", "the processor has no AMX, without which Intel's bf16 is slower")
        return Precision(fast, f"the bundle is {offered[0]} and the processor has {fast}")

    def load(self, graph: Path, variant: Variant, target: Target) -> Engine:
        """Load one graph (see `tudsr_runtime.engines.backend.Backend.load`)."""
        core, streams = open_core(), _streams(target)
        with _named(f"loading {graph} with OpenVINO on {target.device}", by_graph=True), raw_stderr_hidden():
            model = core.read_model(str(graph))
            check_interface(str(graph), _ends(model.inputs), _ends(model.outputs), variant)
            del model
        on_cpu = split_device(target.device)[0] == "cpu"
        with _named(f"loading {graph} with OpenVINO on {target.device}", by_graph=on_cpu):
            compiled = _compile(core, graph, variant, target, streams)
        return CompiledEngine(compiled, graph.parent.name or graph.name, streams, on_cpu)

    def chain(self, engines: Sequence[Engine]) -> TileFunction | None:
        """One tile through these engines, each reading the tensor that the one before it wrote."""
        return RequestChain([engine.model for engine in engines if isinstance(engine, CompiledEngine)]).run


def _property(device: str, name: str) -> Any:
    with _named(f"asking OpenVINO about {device}"):
        return open_core().get_property(_plugin(device), name)


def _bf16_pays(processor: str) -> bool:
    """Whether a processor that has bfloat16 is faster in it than in float32.

    A tile of the embedded bundle took 216 ms against 392 on an AMD EPYC with AVX512-BF16, but 570 against 387
    on an Intel Xeon that has AVX512-BF16 and no AMX. OpenVINO says bfloat16 of both.
    """
    return "AMD" in processor or "amx_bf16" in processor_says("flags", cpuinfo=CPUINFO).split()


def processor_limit() -> str | None:
    """The environment variable that keeps oneDNN from instructions that the processor has; None if none does.

    OpenVINO's oneDNN obeys it, its own kernels do not: what one packs the other misreads, and the process
    ends in a segmentation fault.
    """
    limits = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    return next((name for name in limits if os.environ.get(name, "").upper() not in UNLIMITED), None)


def open_core() -> Any:
    """OpenVINO's core, one for the life of the process.

    Raises DeviceError where it cannot be imported, or was opened before this process was forked: its threads
    are the parent's, and it would wait for them for ever.
    """
    core, process = _opened_core()
    if process != os.getpid():
        raise DeviceError(
            "OpenVINO was started before this process was forked, and does not work in it",
            hint='multiprocessing.get_context("spawn"), or --backend onnxruntime',
        )
    return core


@cache
def _opened_core() -> tuple[Any, int]:
    """The core, and the process that opened it.

    Its CPU plugin gives the thread that loads it a signal stack, and unmaps that when it is freed, by
    whichever thread: with a core of every back end's own, the next Ctrl-C could end in a segmentation fault.
    """
    try:
        import openvino
    except ImportError as error:
        raise import_error("OpenVINO", error, install_hint("openvino")) from error
    return openvino.Core(), os.getpid()


@dataclass
class _Model:
    """A compiled model (None: closed) and its component; held by its engine and the chains that it is in."""

    compiled: Any
    component: str
    on_cpu: bool


class CompiledEngine:
    """A compiled model as an `Engine`, float32 in and out."""

    def __init__(self, compiled: Any, component: str, parallel: int, on_cpu: bool) -> None:
        self.model = _Model(compiled, component, on_cpu)
        self._alone = RequestChain([self.model])
        self.parallel = parallel

    def run(self, x: FloatArray) -> FloatArray:
        """Run the graph (see `Engine.run`)."""
        return self._alone.run(x)

    def close(self) -> None:
        """Release the compiled model."""
        self.model.compiled, self._alone = None, RequestChain([])


class RequestChain:
    """Models in a row. Their requests are wired once, output to input, and lent to one call at a time."""

    def __init__(self, models: Sequence[_Model]) -> None:
        self._models = models
        self._idle: list[list[Any]] = []

    def run(self, x: FloatArray) -> FloatArray:
        """The output of the last model for the input of the first, an array of its own."""
        import openvino

        try:
            requests = self._idle.pop()
        except IndexError:
            requests = self._wired()
        # The array is lent to the request and must live until its model has run.
        tile = np.ascontiguousarray(x)
        requests[0].set_input_tensor(openvino.Tensor(tile, shared_memory=True))
        for model, request in zip(self._models, requests, strict=True):
            doing = f"running {model.component} with OpenVINO"
            with _named(doing, by_graph=model.on_cpu), under_way(request.cancel):
                request.start_async()
                request.wait()
        y: FloatArray = requests[-1].get_output_tensor().data.copy()
        self._idle.append(requests)
        return y

    def _wired(self) -> list[Any]:
        requests = [model.compiled.create_infer_request() for model in self._models]
        for before, after in pairwise(requests):
            after.set_input_tensor(before.get_output_tensor())
        return requests


@contextlib.contextmanager
def _named(doing: str, by_graph: bool = False) -> Iterator[None]:
    try:
        yield
    # The second is raised where the text of the first holds bytes of the graph that are no text.
    except (RuntimeError, UnicodeDecodeError) as error:
        raise as_engine_error(error, doing, by_graph) from error


def _plugin(device: str) -> str:
    kind, number = split_device(device)
    return f"{PLUGINS[kind]}.{number}" if ":" in device else PLUGINS[kind]


def _streams(target: Target) -> int:
    """Measured on two cores: two streams of one thread make a fifth to a third more tiles a second than one
    of two."""
    if split_device(target.device)[0] != "cpu" or not target.small:
        return 1
    return max(1, min(MAX_STREAMS, target.threads or processors()))


def _config(target: Target, streams: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": HINTS[target.precision],
        "PERFORMANCE_HINT": "THROUGHPUT" if streams > 1 else "LATENCY",
    }
    if split_device(target.device)[0] == "cpu":
        config["NUM_STREAMS"] = str(streams)
        if target.threads is not None:
            config["INFERENCE_NUM_THREADS"] = target.threads
    return config


def _cache(folder: Path) -> dict[str, str]:
    """Where compiled models are kept; without a folder that can be written, each start compiles again."""
    try:
        make_folder(folder)
    except OutputError:
        return {}
    return {"CACHE_DIR": str(folder)} if os.access(folder, os.W_OK) else {}


def _compile(core: Any, graph: Path, variant: Variant, target: Target, streams: int) -> Any:
    def read() -> Any:
        return core.read_model(str(graph))

    config, kept = _config(target, streams), cache_folder() / "openvino" / variant.files[0].sha256[:16]
    plugin = _plugin(target.device)
    if plugin != "CPU":
        return core.compile_model(_with_float_ends(read()), plugin, config | _cache(kept))
    try:
        name = " ".join(file.sha256 for file in variant.files)
        model, weights = map_weights(read, kept, name, target.notify)
    except (OutputError, OSError) as error:
        target.notify(
            f"{graph.parent.name} takes several times the memory: its weights go to no file ({error})"
        )
        model, weights = read(), None
    if weights is None:
        return core.compile_model(_with_float_ends(model), plugin, config | _cache(kept))
    with weights.evicted():
        return core.compile_model(_with_float_ends(model), plugin, config)


def _with_float_ends(model: Any) -> Any:
    """The model with float32 as its input and output, converted inside where its own are half."""
    from openvino import Type
    from openvino.preprocess import PrePostProcessor

    ends = PrePostProcessor(model)
    ends.input().tensor().set_element_type(Type.f32)
    ends.output().tensor().set_element_type(Type.f32)
    return ends.build()


def _ends(nodes: list[Any]) -> list[End]:
    kinds = ((node, node.element_type.to_string()) for node in nodes)
    return [
        (node.any_name, ELEMENT_TYPES.get(kind, kind), _shape(node.partial_shape)) for node, kind in kinds
    ]


def _shape(sides: Any) -> tuple[object, ...]:
    """Lengths, and as text those that are not fixed; a number of axes that is not fixed is one such."""
    if sides.rank.is_dynamic:
        return (str(sides),)
    return tuple(str(side) if side.is_dynamic else side.get_length() for side in sides)


BACKEND = OpenVino()
