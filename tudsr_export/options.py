"""The options of `tudsr export`: name, type, default and help of each, once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

UNKNOWN_LICENCE = "unspecified"


@dataclass(frozen=True)
class ExportOptions:
    """What `tudsr export` is told."""

    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Folder to write.")]
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Base model, in the layout of diffusers.")
    ] = None
    stage1: Annotated[
        Path | None,
        typer.Option(metavar="ADAPTER", help="Of stage 1: a PEFT folder, .safetensors, or .pkl of a peer."),
    ] = None
    stage2: Annotated[Path | None, typer.Option(metavar="ADAPTER", help="Likewise of stage 2.")] = None
    from_spandrel: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="In place of base and adapters: a network such as Real-ESRGAN, .pth or .safetensors.",
        ),
    ] = None
    from_invsr: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="In place of adapters: InvSR's noise predictor, with SD-Turbo as the base."
        ),
    ] = None
    merge_lora: Annotated[
        bool,
        typer.Option(
            "--merge-lora/--no-merge-lora", help="Add the adapters to the weights, or keep them beside them."
        ),
    ] = True
    precision: Annotated[Literal["fp16", "fp32"], typer.Option(help="Numbers of the graphs.")] = "fp16"
    timesteps: Annotated[
        str | None,
        typer.Option(metavar="T1,T2", help="Of each stage.  [default: the adapter's own, else 200 and 50]"),
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What to restore towards.  [default: the adapter's, else the base's]"
        ),
    ] = None
    batch: Annotated[
        tuple[int, ...], typer.Option(min=2, max=64, help="Another batch size of every graph; repeatable.")
    ] = ()
    tile: Annotated[
        tuple[int, ...],
        typer.Option(
            metavar="PX",
            help="Another tile size of every graph; repeatable.  [default: 256 and 576 of large bases]",
        ),
    ] = ()
    name: Annotated[str | None, typer.Option(help="The bundle's name.  [default: that of its folder]")] = None
    licence: Annotated[str, typer.Option(help="Licence of the weights, as an SPDX identifier.")] = (
        "unspecified"
    )
    about: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Markdown that the model card begins with.")
    ] = None
    plans: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Factors that were measured to be good, by benchmarks/plans.py.  [default: none listed]",
        ),
    ] = None
    light_decoder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Add a decoder of `tudsr train decoder`: docs/light-decoder.md."),
    ] = None
    vgg16: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="VGG16 to compare it with the full decoder by, as DISTS does."),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False
    engine: Annotated[
        tuple[str, ...],
        typer.Option(metavar="NAME", help="Build engines too: tensorrt-rtx or tensorrt; repeatable."),
    ] = ()
    target: Annotated[
        str | None, typer.Option(metavar="SM", help="GPU of the engines.  [default: this machine's]")
    ] = None
    triton: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a model repository for Triton too.")
    ] = None
