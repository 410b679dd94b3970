"""bundle.json and the model card of an exported bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tudsr_export.merge import StageSettings
from tudsr_export.model_card import model_card
from tudsr_export.onnx_export import OPSET
from tudsr_export.part import TENSOR_DTYPES, Graph
from tudsr_export.plan import ExportPlan
from tudsr_runtime.bundle import MANIFEST_NAME
from tudsr_runtime.files import file_sha256
from tudsr_runtime.manifest import (
    SCHEMA_VERSION,
    BundleFile,
    Component,
    Golden,
    Latent,
    Manifest,
    Stage,
    TensorSpec,
    Variant,
)
from tudsr_runtime.version import __version__
from tudsr_train.generator import Generator
from tudsr_train.step import one_step_weights

TOOLS = ("torch", "diffusers", "peft", "onnx", "onnxscript", "onnxruntime")
MODEL_CARD = "README.md"
DECODER = "vae_decoder"


@dataclass(frozen=True)
class BundleFacts:
    """All that a bundle's manifest and model card say, apart from the figures of the gates."""

    plan: ExportPlan
    base: Generator
    stages: tuple[StageSettings, ...]
    components: dict[str, Component]
    """By name, the preferred variant of each first."""
    golden: Golden | None
    islands: Mapping[str, Any]
    """What of a component stays in float32."""
    light_decoder: str | None = None
    """Name of the component that may decode in the place of the base's own."""
    overlap: int | None = None
    """The least overlap of tiles that the seams were measured to be good with."""


def write_bundle_files(folder: Path, facts: BundleFacts, numerics: dict[str, Any]) -> None:
    """Write bundle.json and README.md beside the component folders that are in `folder` already."""
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=facts.plan.name,
        tudsr_version=__version__,
        licence=facts.plan.licence,
        tile=facts.plan.tile,
        latent=_latent(facts.base),
        precision=facts.plan.precision,
        stages=tuple(_stage(stage, facts) for stage in facts.stages),
        components=facts.components,
        provenance=_provenance(facts),
        numerics=numerics,
        golden=facts.golden,
        overlap=facts.overlap,
        plans=facts.plan.plans,
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    (folder / MODEL_CARD).write_text(model_card(manifest, facts.plan.about), encoding="utf-8")


def _latent(base: Generator) -> Latent:
    codec = base.codec
    shared = 0.0 if codec.mean else codec.shift_factor
    return Latent(
        codec.channels,
        codec.pixels_per_cell,
        codec.scaling_factor,
        codec.latent_margin,
        shared,
        codec.mean,
        codec.std,
    )


def _stage(stage: StageSettings, facts: BundleFacts) -> Stage:
    a, b = one_step_weights(float(facts.base.level(stage.timestep)), stage.formula)
    return Stage(
        stage.name,
        stage.factor,
        stage.timestep,
        stage.encoder,
        stage.unet,
        DECODER,
        facts.light_decoder,
        a=float(a),
        b=float(b),
    )


def list_component(folder: Path, graphs: Sequence[Graph]) -> Component:
    """How the manifest lists a component: its graphs, the preferred first, over files that are each read once
    for their hash."""
    listed = {
        name: bundle_file(folder / name, folder.parent)
        for name in sorted({name for graph in graphs for name in (graph.model, *graph.files)})
    }
    return Component(tuple(_variant(graph, listed) for graph in graphs))


def _variant(graph: Graph, listed: Mapping[str, BundleFile]) -> Variant:
    source, target = (
        TensorSpec(port.name, TENSOR_DTYPES[graph.precision], port.shape) for port in graph.ports
    )
    return Variant(
        listed[graph.model].path,
        tuple(listed[name] for name in (graph.model, *graph.files)),
        graph.shape.batch,
        graph.shape.tile,
        graph.precision,
        OPSET,
        (source,),
        (target,),
        graph.macs,
    )


def bundle_file(path: Path, folder: Path) -> BundleFile:
    """How the manifest of the bundle `folder` lists a file."""
    return BundleFile(path.relative_to(folder).as_posix(), file_sha256(path), path.stat().st_size)


def _provenance(facts: BundleFacts) -> dict[str, Any]:
    return {
        "base": {"id": facts.base.base_id, "sha256": facts.base.base_sha256},
        "prediction_type": facts.base.prediction_type,
        "adapters": {
            stage.name: {
                "sha256": stage.adapter_sha256,
                "rank": stage.rank,
                "layout": stage.layout,
                "formula": stage.formula,
                "prompt_sha256": stage.used_prompt_sha256,
            }
            for stage in facts.stages
        },
        "merged": facts.plan.merge,
        "float32_islands": dict(facts.islands),
        "tools": {tool: version(tool) for tool in TOOLS},
    }
