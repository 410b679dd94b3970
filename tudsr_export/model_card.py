"""README.md of a bundle: what it is, how to use it, what it was made from and how exact it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tudsr_runtime.bundle import MANIFEST_NAME
from tudsr_runtime.manifest import Manifest, MeasuredPlan, Stage, TensorSpec, Variant

TEMPLATE = """\
# {name}

An image super-resolution model for `tudsr`: {count} on fixed tiles of {tile} x {tile}
pixels, as ONNX graphs (opset {opset}, {precision}).

    tudsr upscale photo.png --bundle THIS_FOLDER

Licence of the weights: {licence}.
{about}
## Stages

{stages}

{plans}{light}## Graphs

| component | input | output | size |
| --- | --- | --- | --- |
{components}

{inside}

## Made from

Base `{base}` (sha256 `{base_sha256}`)
and one LoRA adapter per stage, {merged}, by tudsr {version} with {tools}.
The hashes of the adapters and of every file are in `{manifest}`.

## How exact the graphs are

| gate | of | figure | limit | largest error |
| --- | --- | --- | --- | --- |
{figures}

`merged_vs_lora` and `baked_vs_merged` are relative errors in float32; `fp16_range` is the largest value
inside a graph, which float16 must hold; `half_vs_float32` compares whole tiles through all stages in PyTorch,
half against float32; `onnx_vs_torch` each graph in ONNX Runtime with the float32 PyTorch model;
`runtime_vs_torch` a photograph through tudsr's own runtime with the PyTorch model. They say that the graphs
compute what was trained, not how good the pictures are. `tudsr bundle verify THIS_FOLDER` repeats the check
with the golden tile in `golden/` on the machine where the bundle runs.
"""


SCHEMA_1_STAGES = """\
| stage | trained for | timestep | alphas_cumprod | UNet |
| --- | --- | --- | --- | --- |
"""
SCHEMA_1_INSIDE = """\
Images are NCHW in [-1, 1]; latents are already scaled. Timestep, prompt and the one-step formula are inside
the UNets."""
STAGES = """\
| stage | trained for | timestep | a | b | backbone |
| --- | --- | --- | --- | --- | --- |
"""
INSIDE = """\
Images are NCHW in [-1, 1]; latents are already scaled. Timestep, prompt and the one-step formula,
z_H = a z_L + b B(z_L, t, c), are inside the backbones."""
PLANS_SECTION = """\
## Factors

| scale up to | factors | PSNR | SSIM | texture |
| --- | --- | --- | --- | --- |
{rows}

Measured on clean and degraded photographs: luma, and the energy of gradients as a share of the
original's. These factors keep quality up to that scale; of those for a scale, the cheapest for the picture
is taken. `--factors` chooses others.

"""


LIGHT_SECTION = """\
## Light decoder

`--decoder light` runs `vae_decoder_light` in the place of `vae_decoder`: less arithmetic, and pictures that
differ from the full decoder's by what `light_vs_full` says below.

"""


NETWORK_TEMPLATE = """\
# {name}

An image super-resolution network for `tudsr`: {architecture}, which enlarges x{factor}, on fixed tiles of
{tile} x {tile} pixels, as one ONNX graph (opset {opset}, {precision}). It is no diffusion model.

    tudsr upscale photo.png --bundle THIS_FOLDER

Licence of the weights: {licence}.
{about}
## Scales

{scales}

{plans}## Graphs

| component | input | output | size |
| --- | --- | --- | --- |
{components}

Images are NCHW in [-1, 1].

## Made from

`{file}` (sha256 `{sha256}`),
read by {reader} and exported by tudsr {version} with {tools}.
The hashes of all files are in `{manifest}`.

## How exact the graphs are

| gate | of | figure | limit | largest error |
| --- | --- | --- | --- | --- |
{figures}

`baked_vs_merged` is the relative error, in float32, of the module that is exported against what {reader}
computes; `fp16_range` is the largest value inside the graph, which float16 must hold; `half_vs_float32`
compares whole tiles in PyTorch, half against float32; `onnx_vs_torch` each graph in ONNX Runtime with the
float32 PyTorch network; `runtime_vs_torch` a photograph through tudsr's own runtime with the PyTorch network.
`seams` compares what two tiles show, blended, with one across both; `reach` is how far from a tile's edge its
missing neighbours still change a pixel by half a level of 255, from which the bundle's overlap follows.
`tudsr bundle verify THIS_FOLDER` repeats the check with the golden tile in `golden/` on the machine where the
bundle runs.
"""


def network_card(manifest: Manifest, about: str = "") -> str:
    """The same for a bundle whose stages are a network."""
    made, factor = manifest.provenance["network"], manifest.own_factors[0]
    twice = len(manifest.stages) == 2
    variants = [(name, component.variants[0]) for name, component in manifest.components.items()]
    return NETWORK_TEMPLATE.format(
        name=manifest.name,
        architecture=made["architecture"],
        factor=factor,
        about=f"\n{about.strip()}\n" if about.strip() else "",
        tile=manifest.tile,
        opset=variants[0][1].opset,
        precision=manifest.precision,
        licence=manifest.licence,
        scales=f"Up to x{factor} the network runs once"
        + (f", beyond that twice (x{factor**2})" if twice else "")
        + "; what it makes is then resized to the scale asked for."
        + (f" `--factors {factor}x-` runs it once at any scale." if twice else ""),
        plans=_plans(manifest.plans),
        components=_components(variants),
        file=made["file"],
        sha256=made["sha256"],
        reader=made.get("reader", "spandrel"),
        version=manifest.tudsr_version,
        tools=", ".join(f"{tool} {number}" for tool, number in manifest.provenance["tools"].items()),
        manifest=MANIFEST_NAME,
        figures=_rows(row for gate, entry in manifest.numerics.items() for row in _gate_rows(gate, entry)),
    )


def model_card(manifest: Manifest, about: str = "") -> str:
    """The text of README.md for a bundle that `tudsr export` wrote; `about` (Markdown) stands first in it."""
    base, tools = manifest.provenance["base"], manifest.provenance["tools"]
    variants = [(name, component.variants[0]) for name, component in manifest.components.items()]
    stages = len(manifest.stages)
    return TEMPLATE.format(
        name=manifest.name,
        about=f"\n{about.strip()}\n" if about.strip() else "",
        count="two one-step diffusion stages" if stages == 2 else "one one-step diffusion stage",
        tile=manifest.tile,
        opset=variants[0][1].opset,
        precision=manifest.precision,
        licence=manifest.licence,
        stages=_stages(manifest),
        inside=SCHEMA_1_INSIDE if manifest.schema_version == 1 else INSIDE,
        plans=_plans(manifest.plans),
        light=LIGHT_SECTION if manifest.has_light_decoders else "",
        components=_components(variants),
        base=base["id"],
        base_sha256=base["sha256"],
        version=manifest.tudsr_version,
        merged="merged in float32"
        if manifest.provenance["merged"]
        else "kept as branches with weights of their own",
        tools=", ".join(f"{tool} {number}" for tool, number in tools.items()),
        manifest=MANIFEST_NAME,
        figures=_rows(row for gate, entry in manifest.numerics.items() for row in _gate_rows(gate, entry)),
    )


def _components(variants: Iterable[tuple[str, Variant]]) -> str:
    return _rows(
        (
            f"`{name}`",
            _port(variant.inputs[0]),
            _port(variant.outputs[0]),
            f"{sum(file.bytes for file in variant.files) / 1e6:.1f} MB",
        )
        for name, variant in variants
    )


def _plans(plans: tuple[MeasuredPlan, ...]) -> str:
    rows = (
        (f"x{p.scale:g}", p.factors, f"{p.psnr_db:.2f} dB", f"{p.ssim:.4f}", f"{p.texture:.3f}")
        for p in plans
    )
    return PLANS_SECTION.format(rows=_rows(rows)) if plans else ""


def _gate_rows(gate: str, entry: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    if "status" in entry:
        yield gate, "-", str(entry["status"]), "-", "-"
    spec, unit = (".1f", f" {entry['unit'][:2]}") if "unit" in entry else (".2e", "")
    for subject, figures in entry.items():
        if isinstance(figures, dict):
            yield (
                gate,
                subject,
                _figure(figures["value"], spec) + unit,
                "-" if entry["limit"] is None else _figure(entry["limit"], spec) + unit,
                _figure(figures.get("largest"), ".2e"),
            )


def _stages(manifest: Manifest) -> str:
    """The table of the stages, with the step as the manifest's schema says it."""
    first = manifest.schema_version == 1
    rows = (
        (
            stage.name,
            f"x{stage.factor}",
            str(stage.timestep),
            *(f"{number:.6f}" for number in (stage.alpha_cumprod, stage.a, stage.b) if number is not None),
            f"`{stage.unet}`",
        )
        for stage in manifest.stages
        if isinstance(stage, Stage)
    )
    return (SCHEMA_1_STAGES if first else STAGES) + _rows(rows)


def _rows(cells: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _port(spec: TensorSpec) -> str:
    return f"`{spec.name}` {spec.dtype} {' x '.join(map(str, spec.shape))}"


def _figure(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
