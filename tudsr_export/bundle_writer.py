"""bundle.json and the model card of an exported bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tudsr_export.merge import StageSettings
from tudsr_export.model_card import model_card
from tudsr_export.onnx_export import MODEL_NAME, OPSET, Port
from tudsr_export.widen import WIDE_NAME
from tudsr_runtime.bundle import (
    MANIFEST_NAME,
    BundleFile,
    Component,
    Latent,
    Manifest,
    Stage,
    TensorSpec,
    Variant,
    file_sha256,
)
from tudsr_runtime.manifest import SCHEMA_VERSION
from tudsr_runtime.version import __version__
from tudsr_train.adapters import prompt_sha256
from tudsr_train.generator import Generator

TOOLS = ("torch", "diffusers", "peft", "onnx", "onnxscript", "onnxruntime")
TENSOR_DTYPES = {"fp32": "float32", "fp16": "float16"}
MODEL_CARD = "README.md"
ENCODER, DECODER = "vae_encoder", "vae_decoder"


@dataclass(frozen=True)
class BundleFacts:
    """All that a bundle's manifest and model card say, apart from the figures of the gates."""

    name: str
    licence: str
    tile: int
    precision: str
    base: Generator
    stages: tuple[StageSettings, ...]
    ports: Mapping[str, tuple[Port, Port]]
    """Input and output of every component, by its name."""
    about: str = ""
    """Markdown for the model card: what the model is for, and what it is not."""


def write_bundle_files(folder: Path, facts: BundleFacts, numerics: dict[str, Any]) -> None:
    """Write bundle.json and README.md beside the component folders that are in `folder` already."""
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=facts.name,
        tudsr_version=__version__,
        licence=facts.licence,
        tile=facts.tile,
        latent=Latent(
            facts.base.vae.config.latent_channels,
            facts.base.pixels_per_cell,
            facts.base.scaling_factor,
            facts.base.latent_margin,
        ),
        precision=facts.precision,
        stages=tuple(_stage(stage, facts.base) for stage in facts.stages),
        components={name: _component(folder, name, facts) for name in sorted(facts.ports)},
        provenance=_provenance(facts),
        numerics=numerics,
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    (folder / MODEL_CARD).write_text(model_card(manifest, facts.about), encoding="utf-8")


def _stage(stage: StageSettings, base: Generator) -> Stage:
    alpha_t = float(base.alphas_cumprod[stage.timestep])
    return Stage(stage.name, stage.factor, stage.timestep, alpha_t, ENCODER, stage.unet, DECODER)


def _component(folder: Path, name: str, facts: BundleFacts) -> Component:
    models = {MODEL_NAME: facts.precision, WIDE_NAME: "fp32"}
    files = {file.name: _file(file, f"{name}/{file.name}") for file in sorted((folder / name).iterdir())}
    shared = [file for file_name, file in files.items() if file_name not in models]
    return Component(
        tuple(
            _variant(name, facts, precision, files[model], shared)
            for model, precision in models.items()
            if model in files
        )
    )


def _variant(
    name: str, facts: BundleFacts, precision: str, model: BundleFile, shared: list[BundleFile]
) -> Variant:
    source, target = (
        TensorSpec(port.name, TENSOR_DTYPES[precision], port.shape) for port in facts.ports[name]
    )
    return Variant(model.path, (model, *shared), 1, facts.tile, precision, OPSET, (source,), (target,))


def _file(file: Path, path: str) -> BundleFile:
    return BundleFile(path, file_sha256(file), file.stat().st_size)


def _provenance(facts: BundleFacts) -> dict[str, Any]:
    return {
        "base": {"id": facts.base.base_id, "sha256": facts.base.base_sha256},
        "prediction_type": facts.base.prediction_type,
        "adapters": {
            stage.name: {"sha256": stage.adapter_sha256, "rank": stage.rank} for stage in facts.stages
        },
        "prompt_sha256": prompt_sha256(facts.base.prompt_embeds),
        "tools": {tool: version(tool) for tool in TOOLS},
    }
