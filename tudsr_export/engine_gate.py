"""Every graph parsed and built by TensorRT for RTX, which needs no GPU for it, where it is installed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from tudsr_export.gates import ENGINES, Measurement, Report
from tudsr_export.part import Graph
from tudsr_runtime.engines.backend import Notify
from tudsr_runtime.engines.tensorrt.builder import BuiltEngine, build_engine
from tudsr_runtime.engines.tensorrt.library import Library, open_library
from tudsr_runtime.errors import DeviceError, NotFiniteError

LIBRARY, TARGET = "tensorrt-rtx", "sm89"
FUSED_FROM = 512
"""Tile edge from which attention must be fused: smaller ones may have heads that no fused kernel takes."""


def build_all(folder: Path, graphs: Mapping[str, Sequence[Graph]], report: Report, notify: Notify) -> None:
    """The gate tensorrt_rtx: build the graphs that engines are made from for one target: of every component,
    in its first graph's precision, one for each size of tiles.

    Raises NotFiniteError (exit 9) where a graph is refused, or attention is not fused at full size.
    """
    try:
        library = open_library(LIBRARY)
    except DeviceError as error:
        report.notes[ENGINES.name] = f"not run: {error}"
        return
    for name, (first, *others) in graphs.items():
        same = (one for one in others if (one.precision, one.shape.batch) == (first.precision, 1))
        for graph in (first, *same):
            subject = name if graph is first else f"{name}, {graph.shape}"
            notify(f"{subject}: building with {LIBRARY} {library.version} for {TARGET}")
            model = folder / name / graph.model
            _add(report, subject, graph, model, _built(model, library))


def _built(model: Path, library: Library) -> BuiltEngine:
    try:
        return build_engine(model, TARGET, library)
    except DeviceError as error:
        raise NotFiniteError(f"{ENGINES.name}: {error}; nothing is published", hint=error.hint) from error


def _add(report: Report, name: str, graph: Graph, model: Path, built: BuiltEngine) -> None:
    known = dataclasses.asdict(built.facts)
    # What a second export of the same inputs would not repeat.
    del known["seconds"]
    known |= {"version": built.version, "target": built.target}
    known["types"] = [spec.dtype for spec in (*built.inputs, *built.outputs)]
    report.add(Measurement(ENGINES, name, (built.facts.activation_bytes or 0) / 1e6, facts=known))
    backbone = name.startswith(("unet", "transformer"))
    if backbone and _loses_fusion(graph, built) and attends_to_itself(model):
        raise NotFiniteError(
            f"{ENGINES.name}, {name}: no kernel of {built.version} computes attention in one; "
            "nothing is published"
        )


def _loses_fusion(graph: Graph, built: BuiltEngine) -> bool:
    """Whether a half backbone of full size computes attention, and none of it is fused.

    An autoencoder need not: Stable Diffusion's has one head of 512 channels, wider than any fused kernel.
    """
    attends = built.facts.nodes.get("SOFTMAX", 0) > 0
    full = graph.shape.tile >= FUSED_FROM and graph.precision == "fp16"
    return full and attends and built.facts.fused_attention == 0


def attends_to_itself(model: Path) -> bool:
    """Whether a graph weighs as many keys as it has queries, which is what a fused kernel saves memory of.

    Not so Sana's: it attends to the few tokens of a prompt, whose keys are constants, and to itself linearly.
    """
    graph = onnx.load(model, load_external_data=False).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.value_info
    }
    weights = [shapes.get(node.output[0], ()) for node in graph.node if node.op_type == "Softmax"]
    return any(len(shape) < 2 or shape[-1] >= shape[-2] for shape in weights)
