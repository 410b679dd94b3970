"""Engines against ONNX Runtime: each one as a whole as it runs here, and layer by layer where it is wrong.

Every engine gets what ONNX Runtime's float arithmetic on the CPU made of the component before it, so that an
error is that of the engine alone. Looking into an engine is Polygraphy's work: it builds the graph once more
with all of its tensors as outputs.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Collection, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tudsr_runtime.bundle import DECODERS, Bundle
from tudsr_runtime.engines.backend import Backend, Target
from tudsr_runtime.engines.select import open_backend
from tudsr_runtime.engines.tensorrt.cuda import find_gpu
from tudsr_runtime.engines.tensorrt.library import Library
from tudsr_runtime.engines.tensorrt.record import engine_name
from tudsr_runtime.errors import DeviceError
from tudsr_runtime.golden_tile import LEAST_DB, read_tile
from tudsr_runtime.installation import install_hint
from tudsr_runtime.manifest import Variant
from tudsr_runtime.planes import FloatArray, noise_tile

EXTRA = "compare"


@dataclass(frozen=True)
class Difference:
    """How far a tensor is from ONNX Runtime's: peak over RMS error in dB (infinite where equal), and the
    largest error."""

    name: str
    decibels: float
    largest: float

    @property
    def close(self) -> bool:
        """Whether it is what half arithmetic allows; never where it is not finite."""
        return self.decibels >= LEAST_DB


@dataclass(frozen=True)
class Compared:
    """An engine as a whole. `graph` and `x` are what its layers are compared with (see `compare_layers`)."""

    difference: Difference
    graph: Path
    variant: Variant
    x: FloatArray


def compare_engines(
    bundle: Bundle,
    folder: Path,
    library: Library,
    precision: str,
    sizes: Collection[int],
    decoders: Collection[str] = DECODERS[:1],
) -> Iterator[Compared]:
    """Run every engine of a folder and its graph, for each of these sizes of tiles in px and these decoders.

    Raises:
        DeviceError: an engine cannot run here.
        MemoryExhausted: an engine does not fit into the GPU's memory.
    """
    ours, reference = open_backend(library.name), open_backend("onnxruntime")
    for tile in sizes:
        results: dict[str, FloatArray] = {}
        views = [bundle.with_decoder(name) for name in decoders]
        for view, (index, stage) in product(views, enumerate(bundle.manifest.stages)):
            x = _picture(bundle, tile, stage.source_edge(tile))
            for component in view.parts(index):
                variant = bundle.variant(component, precision=precision, tile=tile)
                graph = bundle.path(variant)
                if component not in results:
                    results[component] = _run(reference, graph, variant, Target("cpu", precision), x)
                    y = _run(ours, graph, variant, Target("cuda", precision, engines=folder), x)
                    name = engine_name(bundle, component, tile)
                    yield Compared(difference(name, y, results[component]), graph, variant, x)
                x = results[component]


def require_both(library: Library, target: str) -> None:
    """Raise DeviceError where engines for that target cannot run here, or there is no ONNX Runtime."""
    for name, device in ((library.name, "cuda"), ("onnxruntime", "cpu")):
        if (unavailable := open_backend(name).probe(device)) is not None:
            raise DeviceError(f"nothing to compare with: {unavailable.problem}", hint=unavailable.hint)
    gpu = find_gpu(f"{library.name} has no GPU", hint="leave --compare out")
    if (here := library.target(gpu)) != target:
        raise DeviceError(
            f"engines for {target} cannot be compared here: {gpu.name} is {here}", hint="leave --compare out"
        )


def compare_layers(graph: Path, variant: Variant, library: Library, x: FloatArray) -> list[Difference]:
    """Every tensor that engine and ONNX Runtime both have, in the graph's order, by Polygraphy.

    Raises:
        DeviceError: Polygraphy is not installed, or could not build or run the graph.
    """
    polygraphy = _Polygraphy(library)
    feed = {variant.inputs[0].name: x.astype(variant.inputs[0].dtype)}
    try:
        # stdout is for results alone.
        with redirect_stdout(sys.stderr), polygraphy.reference(graph) as reference:
            expected = {name: np.array(value) for name, value in reference.infer(feed).items()}
        with redirect_stdout(sys.stderr), polygraphy.engine(graph) as engine:
            actual = {name: np.array(value) for name, value in engine.infer(feed).items()}
    except Exception as error:  # Polygraphy's, ONNX Runtime's and TensorRT's share no narrower base.
        raise DeviceError(f"Polygraphy cannot compare {graph}: {error}") from error
    shared = [name for name in expected if name in actual and actual[name].shape == expected[name].shape]
    return [difference(name, actual[name], expected[name]) for name in shared]


def difference(name: str, actual: NDArray[Any], expected: NDArray[Any]) -> Difference:
    """How far an array is from the one that was expected, of the same shape."""
    if not np.isfinite(actual).all():
        return Difference(name, -math.inf, math.inf)
    error = actual.astype(np.float64) - expected.astype(np.float64)
    peak, rms = float(np.abs(expected).max(initial=0)), math.sqrt(float(np.square(error).mean()))
    decibels = math.inf if not rms else 20 * math.log10(max(peak, 1e-30) / rms)
    return Difference(name, decibels, float(np.abs(error).max(initial=0)))


class _Polygraphy:
    """What is used of Polygraphy."""

    def __init__(self, library: Library) -> None:
        self._rtx = library.ahead_of_time
        try:
            # Which TensorRT it takes is looked at when its back end is imported.
            vars(importlib.import_module("polygraphy.config"))["USE_TENSORRT_RTX"] = self._rtx
            logger = importlib.import_module("polygraphy.logger").G_LOGGER
            logger.module_severity = logger.CRITICAL
            self._constants = importlib.import_module("polygraphy.constants")
            self._onnx = importlib.import_module("polygraphy.backend.onnx")
            self._onnxrt = importlib.import_module("polygraphy.backend.onnxrt")
            self._trt = importlib.import_module("polygraphy.backend.trt")
            rtx = importlib.import_module("polygraphy.backend.tensorrt_rtx") if self._rtx else None
        except ImportError as error:
            raise DeviceError(f"Polygraphy cannot be imported ({error})", hint=install_hint(EXTRA)) from None
        self._create_config = rtx.CreateConfigRTX(use_gpu=True) if rtx else self._trt.CreateConfig()
        self._tf32 = library.module.BuilderFlag.TF32
        flags = library.module.NetworkDefinitionCreationFlag
        self._typed = "STRONGLY_TYPED" in getattr(flags, "__members__", {})

    def reference(self, graph: Path) -> Any:
        """A runner of ONNX Runtime on the CPU."""
        marked = self._onnx.ModifyOutputs(
            self._onnx.OnnxFromPath(str(graph)), outputs=self._constants.MARK_ALL
        )
        session = self._onnxrt.SessionFromOnnx(self._onnx.BytesFromOnnx(marked), providers=["cpu"])
        return self._onnxrt.OnnxrtRunner(session)

    def engine(self, graph: Path) -> Any:
        """A runner of an engine that is built here."""

        def configure(builder: Any, network: Any) -> Any:
            config = self._create_config(builder, network)
            config.clear_flag(self._tf32)
            return config

        return self._trt.TrtRunner(self._trt.EngineFromNetwork(self.network(graph), config=configure))

    def network(self, graph: Path) -> Any:
        """A loader of the network, whose types are those of the graph."""
        parsed = self._trt.NetworkFromOnnxPath(str(graph), strongly_typed=self._typed)
        return self._trt.ModifyNetworkOutputs(parsed, outputs=self._constants.MARK_ALL)


def _picture(bundle: Bundle, tile: int, edge: int) -> FloatArray:
    """What a stage reads, `edge` px a side: the golden tile, or noise where there is none of that size."""
    golden = bundle.manifest.golden
    if golden is not None and tile == bundle.manifest.tile:
        return read_tile(bundle, golden)
    return noise_tile(edge)


def _run(backend: Backend, graph: Path, variant: Variant, target: Target, x: FloatArray) -> FloatArray:
    engine = backend.load(graph, variant, target)
    try:
        return engine.run(x)
    finally:
        engine.close()
