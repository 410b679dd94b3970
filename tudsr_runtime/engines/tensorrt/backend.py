"""TensorRT and TensorRT for RTX: engines that `tudsr build` made, on an NVIDIA GPU, without torch.

An engine is executable code. It is read from the user's own cache or the folder that was named, only after
its record (`tudsr_runtime.engines.tensorrt.record`) fits the library, the GPU and the bundle's graphs, and
only if its bytes have the recorded SHA-256; code in it for the host is not allowed to run.

Nobody has run this on a GPU yet: what the tests show is shown with stand-ins for both libraries.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.engines.backend import (
    End,
    Engine,
    Precision,
    Target,
    Unavailable,
    as_end,
    as_engine_error,
    check_interface,
    lacks_memory,
    split_device,
)
from tudsr_runtime.engines.backend import graph_precision as choose_precision
from tudsr_runtime.engines.tensorrt.builder import tensor_spec
from tudsr_runtime.engines.tensorrt.cuda import Gpu, find_gpu, open_cuda
from tudsr_runtime.engines.tensorrt.cuda_chain import SLOTS, Chain, Device, LoadedEngine
from tudsr_runtime.engines.tensorrt.kernels import KernelCache
from tudsr_runtime.engines.tensorrt.library import EXTRAS, TARGETS, Library, open_library
from tudsr_runtime.engines.tensorrt.lock import CollectorLock
from tudsr_runtime.engines.tensorrt.record import (
    BuiltPlan,
    engine_cache,
    engine_folder,
    engine_variants,
    read_plan,
    read_record,
)
from tudsr_runtime.errors import DeviceError, TudsrError
from tudsr_runtime.installation import install_hint
from tudsr_runtime.manifest import Variant
from tudsr_runtime.planes import FloatArray, TileFunction


class TensorRT:
    """A back end (see `tudsr_runtime.engines.backend.Backend`); `name` is "tensorrt" or "tensorrt-rtx"."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: dict[int, _Runtime] = {}
        self.lock = CollectorLock()

    def probe(self, device: str) -> Unavailable | None:
        """None if the library is installed and there is a GPU that it runs on."""
        kind, number = split_device(device)
        if kind != "cuda":
            return Unavailable(f"{self._name} runs on NVIDIA GPUs only", "--device cuda")
        try:
            self._find(number)
        except DeviceError as error:
            return Unavailable(str(error), error.hint or install_hint(EXTRAS[self._name]))
        return None

    def precision(self, device: str, asked: str, offered: Sequence[str]) -> Precision:
        """What the graphs say is what runs (see `tudsr_runtime.engines.backend.Backend.precision`)."""
        del device
        return choose_precision(asked, offered)

    def load(self, graph: Path, variant: Variant, target: Target) -> Engine:
        """Load the engine that was built from one graph (see `tudsr_runtime.engines.backend.Backend.load`).

        Raises:
            DeviceError: there is none, it is not for this GPU or library, or it is not what was built.
        """
        _, number = split_device(target.device)
        runtime = self._acquire(number)
        try:
            return runtime.load(graph, variant, target)
        except BaseException:
            self.give_back(runtime)
            raise

    def chain(self, engines: Sequence[Engine]) -> TileFunction | None:
        """One tile through these engines within the GPU; None if they are on different GPUs, or one makes
        what the next one does not take."""
        ours = [engine for engine in engines if isinstance(engine, TensorRTEngine)]
        if len(ours) != len(engines) or len({id(engine.runtime) for engine in ours}) != 1:
            return None
        loaded = [engine.loaded for engine in ours]
        for before, after in pairwise(loaded):
            if (before.target.dtype, before.target.shape) != (after.source.dtype, after.source.shape):
                return None
        return ours[0].joined(ours)

    def _find(self, number: int) -> tuple[Library, Gpu]:
        library = open_library(self._name)
        gpu = find_gpu(f"{self._name} has no GPU", hint="nvidia-smi shows GPUs and driver", number=number)
        if library.ahead_of_time and gpu.target not in TARGETS:
            raise DeviceError(
                f"TensorRT for RTX does not run on {gpu.name} ({gpu.target})", hint="--backend tensorrt"
            )
        return library, gpu

    def _acquire(self, number: int) -> _Runtime:
        with self.lock:
            if number not in self._open:
                library, gpu = self._find(number)
                self._open[number] = _Runtime(library, gpu, Device(library.module, open_cuda(), number), self)
            self._open[number].users += 1
            return self._open[number]

    def give_back(self, runtime: _Runtime) -> None:
        """One engine of that runtime is gone, or could not be loaded."""
        with self.lock:
            runtime.users -= 1
            if not runtime.users:
                del self._open[runtime.device.number]
                runtime.close()


@dataclass
class _Runtime:
    """The library's runtime on one GPU, shared by all engines there; closed with the last of them."""

    library: Library
    gpu: Gpu
    device: Device
    backend: TensorRT
    users: int = 0

    @property
    def target(self) -> str:
        """What engines for this GPU are for."""
        return self.library.target(self.gpu)

    def __post_init__(self) -> None:
        self._kernels = KernelCache(self.library, self.gpu.card)
        self._runtime = self.library.module.Runtime(self.device.logger)
        self._runtime.engine_host_code_allowed = False

    def load(self, graph: Path, variant: Variant, target: Target) -> TensorRTEngine:
        plan, data = self._read(graph, variant, target)
        name = graph.parent.name or graph.name
        with self.device.at_work():
            engine = self._deserialize(name, data)
        _check_interface(name, engine, variant, plan)
        loaded = LoadedEngine(
            name, engine, variant.inputs[0], variant.outputs[0], lambda: self._context(engine)
        )
        return TensorRTEngine(self, loaded)

    def release(self, chains: Sequence[Chain], loaded: LoadedEngine) -> None:
        """Free an engine and the chains that it is part of."""
        for chain in chains:
            chain.close()
        loaded.drop()
        self.backend.lock.soon(lambda: self.backend.give_back(self))

    def release_soon(self, chains: Sequence[Chain], loaded: LoadedEngine) -> None:
        """The same once nobody works with the GPU: freeing waits for the GPU, which a capture forbids."""

        def release() -> None:
            with suppress(TudsrError):
                self.release(chains, loaded)

        self.device.lock.soon(release)

    def close(self) -> None:
        """Keep the compiled kernels and free what is left."""
        self._kernels.save()
        self._runtime = None
        self.device.close()

    def _read(self, graph: Path, variant: Variant, target: Target) -> tuple[BuiltPlan, bytes]:
        """The engine of a graph: its record, which fits, and its bytes, which are those recorded."""
        folder = target.engines
        if folder is None:
            bundle = open_bundle(graph.parents[variant.model.count("/")], verify=False)
            folder = engine_folder(bundle, self.library, self.target, target.precision)
        build = f"tudsr build {graph.parents[variant.model.count('/')]} --engine {self.library.name}"
        if not folder.is_dir():
            raise DeviceError(
                f"there are no engines in {folder}", hint=f"{build} --precision {variant.precision}"
            )
        record = read_record(folder)
        reason = record.misfit(self.library, self.target, (variant,))
        if reason:
            raise DeviceError(
                f"the engines in {folder} cannot run here: {reason}",
                hint=f"{build} --precision {variant.precision}",
            )
        plan = record.plans[variant.model]
        return plan, read_plan(folder, plan)

    def _deserialize(self, name: str, data: bytes) -> Any:
        trt = self.library.module
        if self.library.ahead_of_time:
            validity, diagnostics = self._runtime.get_engine_validity(data)
            if validity == trt.EngineValidity.INVALID:
                raise _refused(self.gpu.name, name, _reasons(trt, diagnostics))
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self.device.error(f"loading {name}")
        return engine

    def _context(self, engine: Any) -> Any:
        """An execution context whose activations lie in memory that the chain provides."""
        ours = self.library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.library.ahead_of_time:
            return engine.create_execution_context(strategy=ours)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(ours)
        self._kernels.attach(config)
        return engine.create_execution_context(runtime_config=config)


@dataclass
class TensorRTEngine:
    """An engine on a GPU. `run` may be called from several threads; `SLOTS` of them keep the GPU busy."""

    runtime: _Runtime
    loaded: LoadedEngine
    parallel: int = SLOTS
    _chains: dict[tuple[int, ...], Chain] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.RLock)

    def run(self, x: FloatArray) -> FloatArray:
        """Run the graph (see `tudsr_runtime.engines.backend.Engine.run`)."""
        return self.joined([self])(x)

    def joined(self, engines: Sequence[TensorRTEngine]) -> Callable[[FloatArray], FloatArray]:
        """This engine and those behind it as one chain, which is made once."""
        key = tuple(id(engine) for engine in engines)
        with self._lock:
            if key not in self._chains or self._chains[key].closed:
                chain = Chain(self.runtime.device, [engine.loaded for engine in engines])
                for engine in engines:
                    engine._chains[key] = chain
            return self._chains[key].run

    def close(self) -> None:
        """Free the engine and every chain that it is part of."""
        with self._lock:
            if self.loaded.engine is not None:
                chains, self._chains = list(self._chains.values()), {}
                self.runtime.release(chains, self.loaded)

    def __del__(self) -> None:
        """Engines may be dropped instead of closed, once nothing runs them any more."""
        if self.loaded.engine is not None:
            self.runtime.release_soon(list(self._chains.values()), self.loaded)


def _check_interface(name: str, engine: Any, variant: Variant, plan: BuiltPlan) -> None:
    """The engine's own tensors, and those of its record, are what the manifest lists."""
    found: dict[str, list[End]] = {"INPUT": [], "OUTPUT": []}
    for i in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(i)
        spec = tensor_spec(tensor, engine.get_tensor_dtype(tensor).name, engine.get_tensor_shape(tensor))
        found[engine.get_tensor_mode(tensor).name].append(as_end(spec))
    check_interface(f"the engine of {name}", found["INPUT"], found["OUTPUT"], variant)
    check_interface(f"the record of {name}", map(as_end, plan.inputs), map(as_end, plan.outputs), variant)


def _refused(gpu: str, name: str, reasons: str) -> TudsrError:
    if lacks_memory(reasons):
        return as_engine_error(RuntimeError(reasons), f"loading {name} on {gpu} with TensorRT")
    return DeviceError(f"{gpu} cannot run the engine of {name}: {reasons}")


def _reasons(trt: Any, diagnostics: Any) -> str:
    """The names of the bits that TensorRT for RTX sets to say why an engine is not valid."""
    members = trt.EngineInvalidityDiagnostics.__members__
    names = [name for name, bit in members.items() if int(diagnostics) & int(bit)]
    return ", ".join(names).lower().replace("_", " ") or f"reason {int(diagnostics)}"


def missing_engines(
    name: str, bundle: Bundle, device: str, precision: str | None = None
) -> Unavailable | None:
    """Why the cache has no engines for the bundle's own size of tiles that this library could run on this
    device; None if it has.

    Nothing is imported unless there are engines of this library at all.
    """
    build = f"tudsr build {bundle.folder} --engine {name}"
    if not any((engine_cache() / bundle.sha256).glob(f"{name}-[0-9]*")):
        return Unavailable(f"no engines for {name} are built", build)
    try:
        library = open_library(name)
        gpu = find_gpu(f"{name} has no GPU", "nvidia-smi shows GPUs and driver", split_device(device)[1])
        target = library.target(gpu)
        record = read_record(engine_folder(bundle, library, target, precision))
        wanted = engine_variants(bundle, precision)
        # Engines of the bundle's own size go by their component's plain name.
        own = [wanted[component] for component in sorted(bundle.running)]
        reason = record.misfit(library, target, own)
    except TudsrError as error:
        return Unavailable(str(error), error.hint or build)
    return None if reason is None else Unavailable(f"the engines for {name} do not serve: {reason}", build)


TENSORRT, TENSORRT_RTX = TensorRT("tensorrt"), TensorRT("tensorrt-rtx")
"""Both back ends; the two libraries have the same names."""
