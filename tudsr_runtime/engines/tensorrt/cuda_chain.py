"""Tiles through TensorRT engines without a stop on the host.

    host      --upload-->    input  [encoder] latent [UNet] latent [decoder]  output    --download-->    host
    (pinned)                 '--------------- one CUDA graph ---------------'                       (pinned)

Three streams: one uploads, one computes, one downloads, ordered by events. A chain holds `SLOTS` sets of
inputs and outputs, so that two threads keep the GPU busy: while one tile is computed, the next one is on its
way up and the one before on its way down. All chains of a GPU compute on the same stream, one after the
other, and so may share one piece of memory for their activations.
"""

from __future__ import annotations

import ctypes
import logging
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tudsr_runtime.engines.backend import as_engine_error
from tudsr_runtime.engines.tensorrt.build_log import BuildLog, make_logger
from tudsr_runtime.engines.tensorrt.cuda import call
from tudsr_runtime.engines.tensorrt.lock import CollectorLock
from tudsr_runtime.errors import DeviceError, MemoryExhausted, TudsrError
from tudsr_runtime.manifest import TensorSpec
from tudsr_runtime.planes import FloatArray

SLOTS = 2
"""Tiles under way at a time: one computes, the other one is uploaded or downloaded."""
_LOG = logging.getLogger("tudsr")


class Holdings:
    """What is allocated on a GPU for one purpose, freed together, the last first."""

    def __init__(self, call_cuda: Callable[..., Any], cuda: Any) -> None:
        self._call, self._cuda = call_cuda, cuda
        self._release: list[tuple[str, Any]] = []

    def memory(self, size: int) -> int:
        """Address of `size` bytes of the GPU's memory."""
        return int(self._keep("cudaFree", self._call("cudaMalloc", size)))

    def pinned(self, spec: TensorSpec) -> np.ndarray[Any, Any]:
        """An array of host memory that the GPU copies from and to by itself."""
        size = tensor_bytes(spec)
        address = int(self._keep("cudaFreeHost", self._call("cudaMallocHost", size)))
        raw = (ctypes.c_byte * size).from_address(address)
        return np.ctypeslib.as_array(raw).view(spec.dtype).reshape(spec.shape)

    def event(self) -> Any:
        """An event whose waiting thread sleeps."""
        flags = self._cuda.cudaEventDisableTiming | self._cuda.cudaEventBlockingSync
        return self._keep("cudaEventDestroy", self._call("cudaEventCreateWithFlags", flags))

    def stream(self) -> Any:
        """A stream that does not wait for the default one."""
        flags = self._cuda.cudaStreamNonBlocking
        return self._keep("cudaStreamDestroy", self._call("cudaStreamCreateWithFlags", flags))

    def graph(self, captured: Any) -> Any:
        """A captured graph, ready to run."""
        try:
            runnable = self._call("cudaGraphInstantiate", captured, 0)
        finally:
            self._call("cudaGraphDestroy", captured)
        return self._keep("cudaGraphExecDestroy", runnable)

    def free(self) -> None:
        """Free everything; nothing of it may be in use."""
        while self._release:
            self._call(*self._release.pop())

    def _keep(self, release: str, what: Any) -> Any:
        self._release.append((release, what))
        return what


class Device:
    """One GPU as one library uses it. `number` is CUDA's own of the GPU, `lock` guards the order of work."""

    def __init__(self, trt: Any, cuda: Any, number: int = 0) -> None:
        self.trt, self.cuda, self.number = trt, cuda, number
        self.lock = CollectorLock()
        self.log = BuildLog()
        # TensorRT keeps no reference of its own to the logger.
        self.logger = make_logger(trt, self.log)
        self.use()
        self._holdings = self.holdings()
        self.upload, self.compute, self.download = (self._holdings.stream() for _ in range(3))
        self._arena = (0, 0)

    def use(self) -> None:
        """Make it the calling thread's GPU; CUDA keeps one for each thread."""
        self("cudaSetDevice", self.number)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The calling thread alone works with the GPU; `error` tells of what went wrong since it began."""
        with self.lock:
            self.use()
            self.log.forget()
            yield

    def __call__(self, function: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime; raises as `tudsr_runtime.engines.tensorrt.cuda.call`."""
        return call(self.cuda, function, *arguments)

    def holdings(self) -> Holdings:
        """Something to allocate with."""
        return Holdings(self, self.cuda)

    def arena(self, size: int) -> tuple[int, int]:
        """Address and size of memory for activations, shared by all that computes on the one stream."""
        if self._arena[1] < size:
            self._arena = (self._holdings.memory(size), size)
        return self._arena

    def error(self, doing: str) -> TudsrError:
        """The error to raise where TensorRT failed in what `at_work` encloses, with what it said."""
        return as_engine_error(self.log.failure(), f"{doing} with TensorRT")

    def settle(self) -> None:
        """Wait until nothing is under way."""
        for stream in (self.upload, self.compute, self.download):
            self("cudaStreamSynchronize", stream)

    def close(self) -> None:
        """Free the streams and the arena; all chains must be closed."""
        with self.at_work():
            self.settle()
            self._holdings.free()


@dataclass
class LoadedEngine:
    """A deserialised engine and its one input and output. `context` makes an execution context of it."""

    name: str
    engine: Any
    source: TensorSpec
    target: TensorSpec
    context: Callable[[], Any]

    def drop(self) -> None:
        """Let the library free it."""
        self.engine = None
        self.context = lambda: None


@dataclass
class _Slot:
    """One tile under way: its buffers, its execution contexts (a captured graph needs its own), its graph."""

    host_in: np.ndarray[Any, Any]
    host_out: np.ndarray[Any, Any]
    device_in: int
    device_out: int
    uploaded: Any
    computed: Any
    downloaded: Any
    contexts: list[Any] = field(default_factory=list)
    graph: Any = None


class Chain:
    """Engines that pass their tensors on within the GPU. `run` may be called from `SLOTS` threads at once,
    and from more, which then wait.

    Raises:
        MemoryExhausted: buffers do not fit. DeviceError: TensorRT refused them.
    """

    def __init__(self, device: Device, engines: Sequence[LoadedEngine]) -> None:
        self._device, self._engines = device, tuple(engines)
        self._holdings = device.holdings()
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._slots: list[_Slot] = []
        self.closed = False
        with device.at_work():
            try:
                self._prepare()
            except BaseException:
                self._end()
                raise

    def run(self, x: FloatArray) -> FloatArray:
        """One float32 array of the first engine's shape to one of the last engine's.

        Raises:
            MemoryExhausted: the GPU has too little memory.
            DeviceError: the shape is another, or CUDA or TensorRT failed.
        """
        expected = self._engines[0].source.shape
        if x.shape != expected:
            raise DeviceError(f"{self._engines[0].name} takes {expected}, not {x.shape}")
        slot = self._free.get()
        try:
            np.copyto(slot.host_in, x, casting="same_kind")
            with self._device.at_work():
                self._submit(slot)
            self._device("cudaEventSynchronize", slot.downloaded)
            return slot.host_out.astype(np.float32)
        finally:
            self._free.put(slot)

    def close(self) -> None:
        """Free everything but the engines. No `run` may be under way or follow."""
        with self._device.at_work():
            self._end()

    def _end(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._device.settle()
        self._slots.clear()
        self._free = queue.SimpleQueue()
        self._holdings.free()

    def _prepare(self) -> None:
        between = [self._holdings.memory(tensor_bytes(one.target)) for one in self._engines[:-1]]
        arena = self._device.arena(max(int(one.engine.device_memory_size_v2) for one in self._engines))
        for _ in range(SLOTS):
            slot = self._slot()
            self._slots.append(slot)
            self._bind(slot, between, arena)
            self._warm_up(slot)
            self._free.put(slot)

    def _slot(self) -> _Slot:
        hold, source, target = self._holdings, self._engines[0].source, self._engines[-1].target
        return _Slot(
            hold.pinned(source),
            hold.pinned(target),
            hold.memory(tensor_bytes(source)),
            hold.memory(tensor_bytes(target)),
            *(hold.event() for _ in range(3)),
        )

    def _bind(self, slot: _Slot, between: Sequence[int], arena: tuple[int, int]) -> None:
        """Give every engine a context of the slot's own, with the addresses that it will always use."""
        addresses = [slot.device_in, *between, slot.device_out]
        for i, engine in enumerate(self._engines):
            context = engine.context()
            if context is None:
                raise self._device.error(f"preparing {engine.name}")
            if arena[1]:
                context.set_device_memory(*arena)
            for spec, address in ((engine.source, addresses[i]), (engine.target, addresses[i + 1])):
                if not context.set_tensor_address(spec.name, address):
                    raise self._device.error(f"giving {engine.name} its {spec.name}")
            slot.contexts.append(context)

    def _warm_up(self, slot: _Slot) -> None:
        """Run once as it is, which TensorRT asks for, then once more into a graph."""
        self._enqueue(slot)
        self._device("cudaStreamSynchronize", self._device.compute)
        try:
            slot.graph = self._capture(slot)
        except MemoryExhausted:
            raise
        except TudsrError as error:
            names = ", ".join(engine.name for engine in self._engines)
            _LOG.warning("no CUDA graph of %s, so that every tile costs more time to start: %s", names, error)

    def _capture(self, slot: _Slot) -> Any:
        device = self._device
        for engine, context in zip(self._engines, slot.contexts, strict=True):
            # Only TensorRT for RTX may compile kernels while it runs, and can tell.
            asks = getattr(context, "is_stream_capturable", None)
            if asks is not None and not asks(int(device.compute)):
                raise DeviceError(f"{engine.name} cannot be captured yet")
        mode = device.cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        device("cudaStreamBeginCapture", device.compute, mode)
        try:
            self._enqueue(slot)
        except TudsrError:
            # The capture must end and its error be taken before the stream is of use again.
            device.cuda.cudaStreamEndCapture(device.compute)
            device.cuda.cudaGetLastError()
            raise
        return self._holdings.graph(device("cudaStreamEndCapture", device.compute))

    def _submit(self, slot: _Slot) -> None:
        """Put one tile on the three streams."""
        device, kind = self._device, self._device.cuda.cudaMemcpyKind
        up, down = slot.host_in, slot.host_out
        to_device, to_host = kind.cudaMemcpyHostToDevice, kind.cudaMemcpyDeviceToHost
        device("cudaMemcpyAsync", slot.device_in, up.ctypes.data, up.nbytes, to_device, device.upload)
        self._then(slot.uploaded, device.upload, device.compute)
        if slot.graph is None:
            self._enqueue(slot)
        else:
            device("cudaGraphLaunch", slot.graph, device.compute)
        self._then(slot.computed, device.compute, device.download)
        device("cudaMemcpyAsync", down.ctypes.data, slot.device_out, down.nbytes, to_host, device.download)
        device("cudaEventRecord", slot.downloaded, device.download)

    def _then(self, event: Any, before: Any, after: Any) -> None:
        """What follows on the stream `after` waits for what is on `before` by now."""
        self._device("cudaEventRecord", event, before)
        self._device("cudaStreamWaitEvent", after, event, 0)

    def _enqueue(self, slot: _Slot) -> None:
        for engine, context in zip(self._engines, slot.contexts, strict=True):
            if not context.execute_async_v3(int(self._device.compute)):
                raise self._device.error(f"running {engine.name}")


def tensor_bytes(spec: TensorSpec) -> int:
    """Size of a tensor."""
    return int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
