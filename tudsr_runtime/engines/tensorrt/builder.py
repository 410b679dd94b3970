"""One graph to one engine, by TensorRT 10.9 to 11 or TensorRT for RTX.

The network is strongly typed: the types in the graph are those that run. TensorRT 11 knows nothing else, 10
must be told. No precision flag is set; TF32, on by default, is switched off.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tudsr_runtime.engines.backend import as_engine_error, lacks_memory
from tudsr_runtime.engines.tensorrt.build_log import (
    BuildLog,
    BuildProgress,
    Watcher,
    make_logger,
    make_monitor,
)
from tudsr_runtime.engines.tensorrt.layers import Layer, read_inspector, read_layers
from tudsr_runtime.engines.tensorrt.library import Library, choose_target, open_library
from tudsr_runtime.errors import BundleError, DeviceError, TudsrError
from tudsr_runtime.manifest import TensorSpec

TENSORRT_TYPES = {"HALF": "float16", "FLOAT": "float32"}
FLOATING = {"HALF", "BF16", "FLOAT"}
NO_KERNEL = "Could not find any implementation"
POLL_SECONDS = 0.1
T = TypeVar("T")


@dataclass(frozen=True)
class EngineFacts:
    """What is known about an engine once it is built.

    `nodes` counts the network's layers before TensorRT fused them, by type; `casts` those that change one
    floating-point type into another.
    `kernels` counts what is left, `fused_attention` those of it that compute attention in one. Bytes of the
    activations and weights, and the kernels, are None where TensorRT did not say.
    """

    seconds: float
    plan_bytes: int
    activation_bytes: int | None
    weight_bytes: int | None
    nodes: dict[str, int]
    casts: int
    kernels: int | None
    fused_attention: int | None


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine, in memory, and what it is. `plan` has the buffer protocol."""

    library: str
    version: str
    target: str
    plan: memoryview
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    facts: EngineFacts
    layers: tuple[Layer, ...] = field(repr=False)
    timing_cache: bytes = field(repr=False)


def build_engine(
    graph: Path,
    target: str | None = None,
    library: str | Library = "tensorrt-rtx",
    *,
    timing_cache: bytes = b"",
    progress: BuildProgress | None = None,
) -> BuiltEngine:
    """Build one ONNX graph, whose external weights lie beside it.

    Args:
        graph: the ONNX file.
        target: "sm89" and the like; None for this machine's GPU.
        library: a name in `MODULES`, or an opened library.
        timing_cache: what an earlier build for the same GPU measured (`BuiltEngine.timing_cache`); only
            TensorRT itself measures.
        progress: called from another thread with the finished part, 0 to 1, and the phase.

    Raises:
        DeviceError: the library or GPU is not there, or the graph cannot be built.
        BundleError: the graph is damaged or of a kind that TensorRT does not know, and the message names the
            node and TensorRT's reason; or an input or output is not of fixed shape, or of another type than
            half and float.
        UsageError: no such library or target.
    """
    opened = open_library(library) if isinstance(library, str) else library
    target, _ = choose_target(opened, target)
    return _Build(opened, graph, target, progress).run(timing_cache)


class _Build:
    """One build. TensorRT's objects must not outlive the logger, so that all are kept here."""

    def __init__(self, library: Library, graph: Path, target: str, progress: BuildProgress | None) -> None:
        self._library, self._graph, self._target = library, graph, target
        self._trt = library.module
        self._log = BuildLog()
        self._logger = make_logger(self._trt, self._log)
        self._watcher = Watcher(progress)

    def run(self, timing_cache: bytes) -> BuiltEngine:
        started = time.monotonic()
        builder = self._builder()
        network = builder.create_network(_strongly_typed(self._trt))
        self._parse(network)
        config, cache = self._configure(builder, timing_cache)
        monitor = make_monitor(self._trt, self._watcher)
        config.progress_monitor = monitor
        plan = _wait(lambda: builder.build_serialized_network(network, config), self._watcher)
        if self._watcher.failure is not None:
            raise self._watcher.failure
        if plan is None:
            raise self._failed()
        view = memoryview(plan)
        layers = self._inspected(view) or read_layers(self._log.layers)
        return BuiltEngine(
            self._library.name,
            self._library.version,
            self._target,
            view,
            _specs(network.get_input, network.num_inputs),
            _specs(network.get_output, network.num_outputs),
            self._facts(time.monotonic() - started, view.nbytes, network, layers),
            layers,
            b"" if cache is None else bytes(memoryview(cache.serialize())),
        )

    def _inspected(self, plan: memoryview) -> tuple[Layer, ...]:
        """The layers by TensorRT's engine inspector, which needs the GPU that the engine was built for."""
        if self._library.ahead_of_time:
            return ()
        runtime = self._trt.Runtime(self._logger)
        runtime.engine_host_code_allowed = False
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            return ()
        inspector = engine.create_engine_inspector()
        return read_inspector(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _builder(self) -> Any:
        try:
            return self._trt.Builder(self._logger)
        except TypeError:  # What the bindings make of a null pointer.
            reason = self._log.errors[0] if self._log.errors else "no GPU, or too old a driver"
            raise DeviceError(f"{self._library.name} cannot start its builder: {reason}") from None

    def _parse(self, network: Any) -> None:
        parser = self._trt.OnnxParser(network, self._logger)
        if parser.parse_from_file(str(self._graph)):
            return
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise BundleError(
            str(self._refused("; ".join(_describe(error) for error in errors) or "it is no ONNX graph")),
            hint="get or export the bundle again; tudsr builds only its own graphs",
        )

    def _configure(self, builder: Any, timing_cache: bytes) -> tuple[Any, Any]:
        trt = self._trt
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if self._library.ahead_of_time:
            config.num_compute_capabilities = 1
            if not config.set_compute_capability(getattr(trt.ComputeCapability, self._target.upper()), 0):
                raise DeviceError(f"{self._library.name} {self._library.version} refuses {self._target}")
            return config, None
        cache = config.create_timing_cache(timing_cache)
        # False: another GPU's times are refused rather than believed.
        if not config.set_timing_cache(cache, False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        return config, cache

    def _failed(self) -> TudsrError:
        """Kernels are left out where memory is short, which TensorRT only warns of, until a node has none."""
        errors, shortages = self._log.errors, self._log.shortages
        if shortages and any(NO_KERNEL in error or lacks_memory(error) for error in errors):
            return as_engine_error(RuntimeError(shortages[-1]), f"building {self._graph}")
        return self._refused(errors[0] if errors else "TensorRT gave no reason")

    def _refused(self, reason: str) -> TudsrError:
        name = f"{self._library.name} {self._library.version}"
        return DeviceError(f"{name} cannot build {self._graph} for {self._target}: {reason[:600]}")

    def _facts(self, seconds: float, size: int, network: Any, layers: tuple[Layer, ...]) -> EngineFacts:
        nodes = [network.get_layer(i) for i in range(network.num_layers)]
        kinds = Counter(node.type.name for node in nodes)
        memory = self._log.memory
        return EngineFacts(
            round(seconds, 3),
            size,
            memory.get("activation"),
            memory.get("weights"),
            dict(sorted(kinds.items())),
            sum(_changes_precision(node) for node in nodes),
            len(layers) or None,
            sum(layer.fused_attention for layer in layers) if layers else None,
        )


def _strongly_typed(trt: Any) -> int:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _changes_precision(layer: Any) -> bool:
    """Whether a layer turns numbers of one floating-point type into another."""
    if layer.type.name != "CAST":
        return False
    ends = {layer.get_input(0).dtype.name, layer.get_output(0).dtype.name}
    return len(ends) == 2 and ends <= FLOATING


def _describe(error: Any) -> str:
    """A parser's error: the node and what is wrong with it."""
    name, operator = error.node_name(), error.node_operator()
    where = f"node {error.node()} {name!r} ({operator}): " if operator or name else ""
    return where + " ".join(error.desc().split())


def _specs(get: Callable[[int], Any], count: int) -> tuple[TensorSpec, ...]:
    tensors = [get(i) for i in range(count)]
    return tuple(tensor_spec(one.name, one.dtype.name, one.shape) for one in tensors)


def tensor_spec(name: str, kind: str, shape: Iterable[int]) -> TensorSpec:
    """An input or output as the manifest has it; `kind` is TensorRT's name of the type.

    Raises:
        BundleError: its type or shape is none that a bundle's graph has.
    """
    sides = tuple(shape)
    if kind not in TENSORRT_TYPES or min(sides, default=1) < 1:
        raise BundleError(
            f"tensor {name!r} is {kind.lower()} {sides}; graphs take and give fixed half or float"
        )
    return TensorSpec(name, TENSORRT_TYPES[kind], sides)


def _wait(work: Callable[[], T], watcher: Watcher) -> T:
    """Run `work` on another thread, so that Ctrl-C is heard; it then ends TensorRT at its next step."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="tudsr-build", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
    except BaseException:
        watcher.stop = True
        thread.join()
        raise
    if failure:
        raise failure[0]
    return result[0]
