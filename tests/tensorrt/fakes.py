"""Stand-ins for TensorRT, TensorRT for RTX and the CUDA runtime, on machines without a GPU.

They compute with ONNX Runtime in host memory and are as lazy as the real ones may be: work on a stream is
done only when somebody waits for it, so that a missing event shows as a wrong result. Everything that is
asked of them is recorded; `test_contract.py` binds the record to the real libraries' names and signatures.
"""

# ruff: noqa: ARG002, ARG005 - the parameters are those of the real libraries
from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

TYPES = {1: "FLOAT", 10: "HALF"}
NUMPY = {"FLOAT": np.float32, "HALF": np.float16}
ACTIVATION_BYTES = 4096
ENUMERATIONS = (
    *("BuilderFlag", "ProfilingVerbosity", "NetworkDefinitionCreationFlag"),
    *("ExecutionContextAllocationStrategy", "LayerInformationFormat"),
)
INVALIDITY = (
    *("VERSION_MISMATCH", "UNSUPPORTED_CC", "OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME"),
    *("INSUFFICIENT_GPU_MEMORY", "MALFORMED_ENGINE", "CUDA_ERROR"),
)


NO_KERNEL = (
    "[E]",
    "Error Code 10: Internal Error (Could not find any implementation for node the_node.)",
)
NO_MEMORY_TO_BUILD = (
    (
        "[E]",
        "2: [virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: OutOfMemory "
        "(no further information)",
    ),
    (
        "[W]",
        "Requested amount of GPU memory (17179869184 bytes) could not be allocated. There may not be enough "
        "free memory for allocation to succeed.",
    ),
    (
        "[W]",
        "Skipping tactic 8 due to insufficient memory on requested size of 17179869184 detected for tactic "
        "0x000000000000003c.\nTry decreasing the workspace size with IBuilderConfig::setMemoryPoolLimit().",
    ),
    NO_KERNEL,
)
NO_MEMORY_FOR_CONTEXT = (
    (
        "[E]",
        "1: [defaultAllocator.cpp::nvinfer1::internal::DefaultAllocator::allocate::19] Error Code 1: Cuda "
        "Runtime (out of memory)",
    ),
    (
        "[W]",
        "Requested amount of GPU memory (17920000000 bytes) could not be allocated. There may not be enough "
        "free memory for allocation to succeed.",
    ),
    (
        "[E]",
        "2: [executionContext.cpp::nvinfer1::rt::ExecutionContext::ExecutionContext::470] Error Code 2: "
        "OutOfMemory (no further information)",
    ),
)
"""What TensorRT 8 to 10 were seen to log where memory was short, in the order of the lines."""


class Usage:
    """What was asked: names as "IBuilderConfig.clear_flag", and calls with their arguments."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []


class Recorded:
    """Records every public attribute that is read, written or called, under the name of its class.

    What it is made with is kept under the names in `_given`.
    """

    _given: tuple[str, ...] = ()

    def __init__(self, trt: FakeTensorRT, *given: Any) -> None:
        self._trt, self._usage = trt, trt._usage
        for name, value in zip(self._given, given, strict=True):
            setattr(self, name, value)

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name.startswith("_"):
            return value
        dotted = f"{type(self).__name__}.{name}"
        usage = self._usage
        usage.names.add(dotted)
        if not callable(value):
            return value

        def recording(*args: Any, **kwargs: Any) -> Any:
            usage.calls.append((dotted, args, kwargs))
            return value(*args, **kwargs)

        return recording

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            self._usage.names.add(f"{type(self).__name__}.{name}")
        object.__setattr__(self, name, value)


class Member(int):
    """A member of an enumeration: an integer with a name."""

    name: str

    def __new__(cls, number: int, name: str) -> Member:
        made = super().__new__(cls, number)
        made.name = name
        return made


def say(logger: Any, lines: Iterable[tuple[str, str]]) -> None:
    """Log lines as TensorRT does, which names the severities otherwise than its console does."""
    names = {"[E]": "ERROR", "[W]": "WARNING", "[I]": "INFO"}
    for severity, message in lines:
        logger.log(SimpleNamespace(name=names[severity]), message)


class Enumeration:
    """An enumeration that has whatever member is asked for, unless its members are given."""

    def __init__(self, usage: Usage, name: str, members: tuple[str, ...] = ()) -> None:
        self._usage, self._name = usage, name
        self.__members__ = {one: Member(1 << i, one) for i, one in enumerate(members)}

    def __getattr__(self, name: str) -> Member:
        if name.startswith("__"):
            raise AttributeError(name)
        self._usage.names.add(f"{self._name}.{name}")
        return self.__members__.get(name, Member(0, name))


class FakeTensorRT:
    """A module like `tensorrt` (11 by default) or, with `rtx`, `tensorrt_rtx`."""

    def __init__(self, cuda: FakeCuda, rtx: bool = False, version: str = "11.4.0.106") -> None:
        self.__version__ = version
        self._usage, self._cuda, self._rtx = Usage(), cuda, rtx
        self.refuses: set[str] = set()
        """Steps that fail: "address", "execute", "capture", "context", "deserialize", "build", "cache"."""
        self.says: dict[str, tuple[tuple[str, str], ...]] = {}
        """What a step that fails logs, where it is not the usual."""
        self.invalid = 3
        """The bits of what TensorRT for RTX finds wrong with an engine, where "validity" is refused."""
        self.error = 0.0
        """What a graph that adds something adds too much."""
        self.meanwhile: Callable[[], None] = lambda: None
        """What happens to happen while work is captured."""
        self.seen_timings: list[bytes] = []
        self.ILogger = type("ILogger", (), {})
        self.IProgressMonitor = type("IProgressMonitor", (), {})
        if rtx:
            self.ComputeCapability = self._enumeration("ComputeCapability")
            self.EngineInvalidityDiagnostics = self._enumeration("EngineInvalidityDiagnostics", INVALIDITY)
            self.EngineValidity = self._enumeration("EngineValidity", ("VALID", "INVALID"))
        for name in ENUMERATIONS:
            setattr(self, name, self._enumeration(name))

    def _enumeration(self, name: str, members: tuple[str, ...] = ()) -> Enumeration:
        return Enumeration(self._usage, name, members)

    def _made(self, kind: type[Recorded], *given: Any) -> Any:
        self._usage.calls.append((f"{kind.__name__}.__init__", given, {}))
        return kind(self, *given)

    def Builder(self, logger: Any) -> Any:
        return self._made(Builder, logger)

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return self._made(OnnxParser, network, logger)

    def Runtime(self, logger: Any) -> Any:
        return self._made(Runtime, logger)


class Builder(Recorded):
    _given = ("_logger",)

    def create_network(self, flags: int = 0) -> Any:
        return INetworkDefinition(self._trt, flags)

    def create_builder_config(self) -> Any:
        return IBuilderConfig(self._trt)

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        monitor = config._monitor
        monitor.phase_start("Building engine", None, 2)
        going = monitor.step_complete("Building engine", 0)
        monitor.phase_finish("Building engine")
        if "build" in self._trt.refuses or not going:
            say(self._logger, self._trt.says.get("build", (NO_KERNEL,)))
            return None
        self._logger.log(SimpleNamespace(name="INFO"), f"Total Activation Memory: {ACTIVATION_BYTES} bytes")
        if config._timings is not None:
            self._trt.seen_timings.append(config._timings._data)
            config._timings._data += b"t"
        return b"PLAN" + network._model.SerializeToString()


class INetworkDefinition(Recorded):
    _given = ("_flags",)
    _model: Any = None

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self._model.graph.output)

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    def get_input(self, index: int) -> Any:
        return ITensor(self._trt, self._model.graph.input[index])

    def get_output(self, index: int) -> Any:
        return ITensor(self._trt, self._model.graph.output[index])

    def get_layer(self, index: int) -> Any:
        return ILayer(self._trt, self._model.graph.node[index].op_type)


class ITensor(Recorded):
    def __init__(self, trt: FakeTensorRT, value: Any) -> None:
        super().__init__(trt)
        kind = value.type.tensor_type
        shape = tuple(one.dim_value for one in kind.shape.dim)
        self.__dict__.update(name=value.name, dtype=Member(0, TYPES[kind.elem_type]), shape=shape)


class ILayer(Recorded):
    def __init__(self, trt: FakeTensorRT, operator: str) -> None:
        super().__init__(trt)
        self.__dict__["type"] = Member(0, operator.upper())

    def get_input(self, index: int) -> Any:
        return self._end("FLOAT")

    def get_output(self, index: int) -> Any:
        return self._end("HALF")

    def _end(self, kind: str) -> Any:
        tensor = ITensor.__new__(ITensor)
        tensor.__dict__.update(_trt=self._trt, _usage=self._usage, dtype=Member(0, kind))
        return tensor


class OnnxParser(Recorded):
    _given = ("_network", "_logger")

    def parse_from_file(self, model: str) -> bool:
        import onnx

        self._network._model = onnx.load(model)
        foreign = [node for node in self._network._model.graph.node if node.op_type.startswith("My")]
        self._errors = [ParserError(self._trt, node) for node in foreign]
        return not foreign

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._errors[index]


class ParserError(Recorded):
    _given = ("_node",)

    def node(self) -> int:
        return 0

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type

    def desc(self) -> str:
        return "No importer registered\nfor op"


class IBuilderConfig(Recorded):
    _monitor: Any = None
    _timings: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "progress_monitor":
            self._monitor = value

    def clear_flag(self, flag: Any) -> None:
        assert flag.name == "TF32"

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        return True

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        return ITimingCache(self._trt, serialized_timing_cache)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if ignore_mismatch or cache._data.startswith(b"other GPU"):
            return False
        self._timings = cache
        return True


class ITimingCache(Recorded):
    _given = ("_data",)

    def serialize(self) -> bytes:
        return self._data


class Runtime(Recorded):
    _given = ("_logger",)

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        if "validity" in self._trt.refuses:
            return self._trt.EngineValidity.INVALID, self._trt.invalid
        return self._trt.EngineValidity.VALID, 0

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        assert self.__dict__["engine_host_code_allowed"] is False
        serialized_engine = bytes(serialized_engine)
        if "deserialize" in self._trt.refuses or not serialized_engine.startswith(b"PLAN"):
            say(self._logger, self._trt.says.get("deserialize", (("[E]", "Serialization assertion failed"),)))
            return None
        return ICudaEngine(self._trt, self._logger, serialized_engine[4:])


class ICudaEngine(Recorded):
    def __init__(self, trt: FakeTensorRT, logger: Any, graph: bytes) -> None:
        super().__init__(trt)
        import onnx
        import onnxruntime

        self._logger = logger
        self._graph = onnx.load_from_string(graph).graph
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._ends = {one.name: one for one in (*self._graph.input, *self._graph.output)}

    @property
    def device_memory_size_v2(self) -> int:
        return ACTIVATION_BYTES

    @property
    def num_io_tensors(self) -> int:
        return len(self._ends)

    def get_tensor_name(self, index: int) -> str:
        return list(self._ends)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return Member(0, "INPUT" if name == self._graph.input[0].name else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return Member(0, TYPES[self._ends[name].type.tensor_type.elem_type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(one.dim_value for one in self._ends[name].type.tensor_type.shape.dim)

    def create_engine_inspector(self) -> Any:
        return EngineInspector(self._trt, self._graph)

    def create_runtime_config(self) -> Any:
        return IRuntimeConfig(self._trt)

    def create_execution_context(self, strategy: Any = None, runtime_config: Any = None) -> Any:
        assert (runtime_config is not None) == self._trt._rtx
        chosen = runtime_config._strategy if runtime_config is not None else strategy
        assert chosen.name == "USER_MANAGED"
        if "context" in self._trt.refuses:
            say(self._logger, self._trt.says.get("context", ()))
            return None
        return IExecutionContext(self)


class EngineInspector(Recorded):
    _given = ("_graph",)

    def get_engine_information(self, format: Any) -> str:  # noqa: A002
        """As TensorRT 11 says it: type and format apart; TensorRT 10 has both under "Format/Datatype"."""
        assert format.name == "JSON"
        kinds = {"FLOAT": "Float", "HALF": "Half"}
        element = self._graph.output[0].type.tensor_type.elem_type
        layers = [
            {
                "Name": node.name or node.op_type,
                "LayerType": "kgen",
                "Outputs": [{"Name": name, "Datatype": kinds[TYPES[element]], "Format": "Linear"}],
                "TacticName": "a_tactic",
                "Metadata": f"[ONNX Layer: {node.name}]",
            }
            for node in self._graph.node
            for name in node.output
        ]
        return json.dumps({"Layers": layers, "Bindings": []})


class IRuntimeConfig(Recorded):
    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> Any:
        return IRuntimeCache(self._trt)

    def set_runtime_cache(self, cache: Any) -> bool:
        cache._data = cache._data or b"compiled"
        return True


class IRuntimeCache(Recorded):
    _data = b""

    def deserialize(self, blob: bytes) -> bool:
        if "cache" in self._trt.refuses:
            return False
        self._data = blob
        return True

    def serialize(self) -> bytes:
        return self._data


class IExecutionContext(Recorded):
    def __init__(self, engine: Any) -> None:
        super().__init__(engine._trt)
        self._engine, self._addresses, self._arena, self._runs = engine, {}, (0, 0), 0
        if self._trt._rtx:
            self.__dict__["is_stream_capturable"] = lambda stream: "capturable" not in self._trt.refuses

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= ACTIVATION_BYTES
        self._arena = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert not self._runs, "a captured graph would keep the old address"
        self._addresses[name] = memory
        return "address" not in self._trt.refuses

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert type(stream_handle) is int
        cuda, engine = self._trt._cuda, self._engine
        capturing = cuda._streams[stream_handle].capture is not None
        if "execute" in self._trt.refuses or (capturing and "capture" in self._trt.refuses):
            say(engine._logger, self._trt.says.get("execute", (("[E]", "Cask convolution execution"),)))
            return False
        if capturing:
            self._trt.meanwhile()
        assert self._arena[0] in cuda._device
        assert not capturing or self._runs == 1, "run once before the capture, then never uncaptured"
        self._runs += 1
        graph, addresses = engine._graph, dict(self._addresses)
        source, target = graph.input[0].name, graph.output[0].name

        def compute() -> None:
            feed = cuda._device[addresses[source]].view(NUMPY[engine.get_tensor_dtype(source).name])
            y = engine._session.run([target], {source: feed.reshape(engine.get_tensor_shape(source))})[0]
            if any(node.op_type == "Add" for node in graph.node):
                y = y + y.dtype.type(engine._trt.error)
            cuda._device[addresses[target]][:] = np.ascontiguousarray(y).view(np.uint8).reshape(-1)

        cuda._put(stream_handle, compute)
        return True


Work = Callable[[], object]


@dataclass
class _Stream:
    pending: list[Work] = field(default_factory=list)
    capture: list[Work] | None = None
    spoiled: bool = False


UNSUPPORTED = Member(900, "cudaErrorStreamCaptureUnsupported")
OK = Member(0, "cudaSuccess")


class FakeCuda:
    """A module like `cuda.bindings.runtime`. Handles are integers; memory is numpy's."""

    cudaEventDisableTiming = 2
    cudaEventBlockingSync = 1
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")

    def __init__(self, target: tuple[int, int] = (8, 9), count: int = 1, memory: int = 1 << 40) -> None:
        self._usage = Usage()
        self._target, self._count, self._left = target, count, memory
        self._card = b"Fake GPU\0\0", 24 << 30
        self._device: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        self._streams: dict[int, _Stream] = {}
        self._events: dict[int, tuple[int, int]] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._executables: dict[int, list[Work]] = {}
        self._keep: dict[int, Any] = {}
        self._handles = iter(range(1000, 1 << 30))
        self.launches = 0
        self.most_pending = 0
        self._lock = threading.RLock()

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda"):
            return value
        usage = self._usage
        usage.names.add(name)
        if not callable(value):
            return value

        def recording(*args: Any) -> Any:
            usage.calls.append((name, args, {}))
            with object.__getattribute__(self, "_lock"):
                return value(*args)

        return recording

    def live(self) -> int:
        """How many things are allocated and not freed."""
        owned = (self._device, self._pinned, self._streams, self._events, self._graphs, self._executables)
        return sum(map(len, owned))

    def cudaGetDeviceCount(self) -> Any:
        return (OK, self._count) if self._count else (Member(100, "cudaErrorNoDevice"), 0)

    def cudaGetErrorString(self, error: Any) -> Any:
        return OK, b"what it means"

    def cudaGetLastError(self) -> Any:
        return (OK,)

    def cudaGetDeviceProperties(self, device: int) -> Any:
        major, minor = self._target
        name, memory = self._card
        return OK, SimpleNamespace(name=name, major=major, minor=minor, totalGlobalMem=memory)

    def cudaSetDevice(self, device: int) -> Any:
        return (OK,) if device < self._count else (Member(101, "cudaErrorInvalidDevice"),)

    def _forbidden(self) -> bool:
        """Whether a capture is under way, which a call that waits or allocates then spoils."""
        capturing = [stream for stream in self._streams.values() if stream.capture is not None]
        for stream in capturing:
            stream.spoiled = True
        return bool(capturing)

    def cudaMalloc(self, size: int) -> Any:
        if self._forbidden():
            return UNSUPPORTED, None
        if size > self._left:
            return Member(2, "cudaErrorMemoryAllocation"), None
        self._left -= size
        return OK, self._allocate(self._device, size)

    def cudaFree(self, pointer: int) -> Any:
        if self._forbidden():
            return (UNSUPPORTED,)
        self._left += self._device.pop(pointer).nbytes
        return (OK,)

    def cudaMallocHost(self, size: int) -> Any:
        return OK, self._allocate(self._pinned, size)

    def cudaFreeHost(self, pointer: int) -> Any:
        del self._pinned[pointer]
        return (OK,)

    def _allocate(self, where: dict[int, Any], size: int) -> int:
        raw = np.full(size + 256, 0xFF, np.uint8)  # NaN, whatever the type.
        begin = -raw.ctypes.data % 256
        piece = raw[begin : begin + size]
        where[piece.ctypes.data] = piece
        self._keep[piece.ctypes.data] = raw
        return int(piece.ctypes.data)

    def _handle(self, where: dict[int, Any], what: Any) -> Any:
        handle = next(self._handles)
        where[handle] = what
        return OK, handle

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return self._handle(self._streams, _Stream())

    def cudaStreamDestroy(self, stream: int) -> Any:
        assert not self._streams.pop(stream).pending
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> Any:
        if self._forbidden():
            return (UNSUPPORTED,)
        pending = self._streams[stream].pending
        while pending:
            pending.pop(0)()
        return (OK,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: str, stream: int) -> Any:
        to, of = (self._device, self._pinned) if kind == "up" else (self._pinned, self._device)
        assert to[dst].nbytes == of[src].nbytes == count
        self._put(stream, lambda: ctypes.memmove(dst, src, count))
        return (OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        return self._handle(self._events, (0, 0))

    def cudaEventDestroy(self, event: int) -> Any:
        del self._events[event]
        return (OK,)

    def cudaEventRecord(self, event: int, stream: int) -> Any:
        self._events[event] = (stream, len(self._streams[stream].pending))
        marker = self._events[event]
        self._put(stream, lambda: self._passed(event, marker))
        return (OK,)

    def _passed(self, event: int, marker: tuple[int, int]) -> None:
        if self._events.get(event) == marker:
            self._events[event] = (0, 0)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:
        self._put(stream, lambda: self._reach(event))
        return (OK,)

    def cudaEventSynchronize(self, event: int) -> Any:
        self._reach(event)
        return (OK,)

    def _reach(self, event: int) -> None:
        """Do no more than what the event waits for."""
        while event in self._events and self._events[event][0]:
            self._streams[self._events[event][0]].pending.pop(0)()

    def _put(self, stream: int, work: Work) -> None:
        known = self._streams[stream]
        (known.pending if known.capture is None else known.capture).append(work)
        self.most_pending = max(self.most_pending, len(known.pending))

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> Any:
        assert not self._streams[stream].pending
        self._streams[stream].capture = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> Any:
        captured, self._streams[stream].capture = self._streams[stream].capture, None
        if not captured or self._streams[stream].spoiled:
            return Member(901, "cudaErrorStreamCaptureInvalidated"), None
        return self._handle(self._graphs, captured)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        return self._handle(self._executables, list(self._graphs[graph]))

    def cudaGraphDestroy(self, graph: int) -> Any:
        del self._graphs[graph]
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec: int) -> Any:
        del self._executables[graphExec]
        return (OK,)

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> Any:
        self.launches += 1
        for work in self._executables[graphExec]:
            self._put(stream, work)
        return (OK,)
