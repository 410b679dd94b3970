"""README.md of a bundle: what it is, how to use it, what it was made from and how exact it is."""

from __future__ import annotations

from collections.abc import Iterable

from tudsr_runtime.bundle import MANIFEST_NAME, Manifest, TensorSpec

TEMPLATE = """\
# {name}

An image super-resolution model for `tudsr`: {count} on fixed tiles of {tile} x {tile}
pixels, as ONNX graphs (opset {opset}, {precision}).

    tudsr upscale photo.png --bundle THIS_FOLDER

Licence of the weights: {licence}.
{about}
## Stages

| stage | trained for | timestep | alphas_cumprod | UNet |
| --- | --- | --- | --- | --- |
{stages}

## Graphs

| component | input | output | size |
| --- | --- | --- | --- |
{components}

Images are NCHW in [-1, 1]; latents are already scaled. Timestep, prompt and the one-step formula are inside
the UNets.

## Made from

Base `{base}` (sha256 `{base_sha256}`)
and one LoRA adapter per stage, merged in float32, by tudsr {version} with {tools}.
The hashes of the adapters and of every file are in `{manifest}`.

## How exact the graphs are

| gate | of | figure | limit | PSNR, dB | largest |
| --- | --- | --- | --- | --- | --- |
{figures}

`merged_vs_lora` and `baked_vs_merged` are relative errors in float32; `fp16_range` is the largest value
inside a graph, which float16 must hold; `onnx_vs_torch` is the largest error of each graph's output against
the float32 PyTorch model; `picture` is the root mean square error of a whole tile through all stages, in
pixel values of [0, 1], with the largest error of one pixel beside it. They say that the graphs compute what
was trained, not how good the pictures are.
"""


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
        stages=_rows(
            (s.name, f"x{s.factor}", str(s.timestep), f"{s.alpha_cumprod:.6f}", f"`{s.unet}`")
            for s in manifest.stages
        ),
        components=_rows(
            (
                f"`{name}`",
                _port(variant.inputs[0]),
                _port(variant.outputs[0]),
                f"{sum(file.bytes for file in variant.files) / 1e6:.1f} MB",
            )
            for name, variant in variants
        ),
        base=base["id"],
        base_sha256=base["sha256"],
        version=manifest.tudsr_version,
        tools=", ".join(f"{tool} {number}" for tool, number in tools.items()),
        manifest=MANIFEST_NAME,
        figures=_rows(
            (
                gate,
                subject,
                f"{figures['value']:.2e}",
                _figure(entry["limit"], ".2e"),
                _figure(figures.get("psnr_db"), ".1f"),
                _figure(figures.get("largest"), ".2e"),
            )
            for gate, entry in manifest.numerics.items()
            for subject, figures in entry.items()
            if subject != "limit"
        ),
    )


def _rows(cells: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _port(spec: TensorSpec) -> str:
    return f"`{spec.name}` {spec.dtype} {' x '.join(map(str, spec.shape))}"


def _figure(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
