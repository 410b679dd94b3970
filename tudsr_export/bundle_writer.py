"""bundle.json and the model card of an exported bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tudsr_export.merge import StageSettings
from tudsr_export.onnx_export import MODEL_NAME, OPSET, Port
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


@dataclass(frozen=True)
class ExportedStage:
    """A stage, the component that holds its UNet, and alphas_cumprod at its timestep."""

    settings: StageSettings
    unet: str
    alpha_cumprod: float


@dataclass(frozen=True)
class BundleFacts:
    """All that a bundle's manifest and model card say, apart from the figures of the gates."""

    name: str
    licence: str
    tile: int
    precision: str
    base: Generator
    stages: tuple[ExportedStage, ...]
    ports: Mapping[str, tuple[Port, Port]]
    """Input and output of every component, by its name."""


def write_bundle_files(folder: Path, facts: BundleFacts, numerics: dict[str, Any]) -> None:
    """Write bundle.json and README.md beside the component folders that are in `folder` already."""
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=facts.name,
        tudsr_version=__version__,
        licence=facts.licence,
        tile=facts.tile,
        latent=Latent(
            facts.base.vae.config.latent_channels, facts.base.pixels_per_cell, facts.base.scaling_factor
        ),
        precision=facts.precision,
        stages=tuple(_stage(stage) for stage in facts.stages),
        components={name: _component(folder, name, facts) for name in sorted(facts.ports)},
        provenance=_provenance(facts),
        numerics=numerics,
    )
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    (folder / MODEL_CARD).write_text(model_card(manifest), encoding="utf-8")


def _stage(stage: ExportedStage) -> Stage:
    settings = stage.settings
    return Stage(
        settings.name,
        settings.factor,
        settings.timestep,
        stage.alpha_cumprod,
        "vae_encoder",
        stage.unet,
        "vae_decoder",
    )


def _component(folder: Path, name: str, facts: BundleFacts) -> Component:
    source, target = (
        TensorSpec(port.name, TENSOR_DTYPES[facts.precision], port.shape) for port in facts.ports[name]
    )
    files = tuple(
        BundleFile(f"{name}/{file.name}", file_sha256(file), file.stat().st_size)
        for file in sorted((folder / name).iterdir())
    )
    variant = Variant(
        f"{name}/{MODEL_NAME}", files, 1, facts.tile, facts.precision, OPSET, (source,), (target,)
    )
    return Component((variant,))


def _provenance(facts: BundleFacts) -> dict[str, Any]:
    return {
        "base": {"id": facts.base.base_id, "sha256": facts.base.base_sha256},
        "prediction_type": facts.base.prediction_type,
        "adapters": {
            stage.settings.name: {"sha256": stage.settings.adapter_sha256, "rank": stage.settings.rank}
            for stage in facts.stages
        },
        "prompt_sha256": prompt_sha256(facts.base.prompt_embeds),
        "tools": {tool: version(tool) for tool in TOOLS},
    }


def model_card(manifest: Manifest) -> str:
    """README.md: what the bundle is, how to use it, what it was made from and how exact it is."""
    stages = "\n".join(
        f"| {s.name} | x{s.factor} | {s.timestep} | {s.alpha_cumprod:.6f} | `{s.unet}` |"
        for s in manifest.stages
    )
    components = "\n".join(
        f"| `{name}` | {_port(v.inputs[0])} | {_port(v.outputs[0])} | {sum(f.bytes for f in v.files) / 1e6:.1f} MB |"
        for name, component in manifest.components.items()
        for v in component.variants
    )
    figures = "\n".join(
        f"| {gate} | {subject} | {entry['error']:.2e} | {_figure(entry['psnr_db'], '.1f')} "
        f"| {_figure(gates['limit'], '.2e')} |"
        for gate, gates in manifest.numerics.items()
        for subject, entry in gates.items()
        if subject != "limit"
    )
    base, tools = manifest.provenance["base"], manifest.provenance["tools"]
    return f"""# {manifest.name}

An image super-resolution model for `tudsr`: {len(manifest.stages)} one-step diffusion stage(s) on fixed tiles of
{manifest.tile} x {manifest.tile} pixels, as ONNX graphs (opset {OPSET}, {manifest.precision}).

    tudsr upscale photo.png --bundle THIS_FOLDER

Licence of the weights: {manifest.licence}.

## Stages

| stage | trained for | timestep | alphas_cumprod | UNet |
| --- | --- | --- | --- | --- |
{stages}

## Graphs

| component | input | output | size |
| --- | --- | --- | --- |
{components}

Images are NCHW in [-1, 1]; latents are already scaled. Timestep, prompt and the one-step formula are inside the UNets.

## Made from

Base `{base["id"]}` (sha256 `{base["sha256"]}`) and one LoRA adapter per stage, merged in float32, with tudsr
{manifest.tudsr_version} and {", ".join(f"{tool} {number}" for tool, number in tools.items())}. Hashes of the adapters
and of every file are in `{MANIFEST_NAME}`.

## How exact the graphs are

| gate | of | largest error | PSNR, dB | limit |
| --- | --- | --- | --- | --- |
{figures}

`merged_vs_lora` and `baked_vs_merged` are relative and in float32; `onnx_vs_torch` is absolute, against the float32
PyTorch model, on each graph's own output; `picture` is a whole tile through all stages, in pixel values of [0, 1]. They
say that these graphs compute what was trained, not how good the pictures are.
"""


def _port(spec: TensorSpec) -> str:
    return f"`{spec.name}` {spec.dtype} {' x '.join(map(str, spec.shape))}"


def _figure(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
