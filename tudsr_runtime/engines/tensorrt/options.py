"""The options of `tudsr build`: name, type, default and help of each, once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer


@dataclass(frozen=True)
class BuildOptions:
    """The options of `tudsr build`."""

    bundle: Annotated[str, typer.Argument(metavar="nano|DIR", help="The bundle.")]
    engine: Annotated[str, typer.Option(metavar="NAME", help="Library: tensorrt-rtx or tensorrt.")] = (
        "tensorrt-rtx"
    )
    target: Annotated[
        str | None,
        typer.Option(
            metavar="SM", help="GPU: sm75, sm80, sm86, sm89, sm120 or sm121.  [default: this machine's]"
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder of the engines.  [default: in the cache]"),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of the graphs: fp16 or fp32, if the bundle has both.  [default: its own]"
        ),
    ] = None
    tile: Annotated[
        tuple[int, ...],
        typer.Option(metavar="PX", help="Only for tiles of that size; repeatable.  [default: all sizes]"),
    ] = ()
    decoder: Annotated[
        Literal["full", "light"] | None,
        typer.Option(help="Only for that decoder, where the bundle has both.  [default: both]"),
    ] = None
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Print layers, precisions, fusions and memory.")
    ] = False
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Run the engines and compare them with ONNX Runtime (needs the GPU)."),
    ] = False
    as_json: Annotated[bool, typer.Option("--json", help="The engines' record as JSON.")] = False
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only results and errors.")] = False
