"""The options of `tudsr bench`: name, type, default and help of each, once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from tudsr_runtime.engines.options import backend_option, engines_option, threads_option


@dataclass(frozen=True)
class _Where:
    bundle: Annotated[str, typer.Option(metavar="nano|DIR", help="The model to run.")] = "nano"
    backend: Annotated[str, backend_option()] = "auto"
    device: Annotated[str, typer.Option(metavar="NAME", help="Where to run, as in `tudsr upscale`.")] = "auto"
    precision: Annotated[str, typer.Option(metavar="NAME", help="Arithmetic: auto, fp32, bf16 or fp16.")] = (
        "auto"
    )
    threads: Annotated[int | None, threads_option()] = None
    decoder: Annotated[
        Literal["full", "light"], typer.Option(help="light is faster, where the model has one.")
    ] = "full"
    engines: Annotated[Path | None, engines_option()] = None


@dataclass(frozen=True)
class _Picture(_Where):
    size: Annotated[int, typer.Option(metavar="PX", min=1, help="Side of the input picture.")] = 256
    scale: Annotated[float, typer.Option(help="Enlarge by this, 1 to 32.")] = 8.0


@dataclass(frozen=True)
class BenchOptions(_Where):
    """The options that both commands share."""

    warmup: Annotated[int, typer.Option(min=0, help="Runs that are not counted.")] = 1
    repeats: Annotated[int, typer.Option(min=1, help="Runs that are.")] = 5
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Write NAME.md and NAME.json there too."),
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="JSON in the place of Markdown on stdout.")] = False


@dataclass(frozen=True)
class LatencyOptions(BenchOptions, _Picture):
    """The options of `tudsr bench latency`; a dataclass takes the fields of its last parent first."""


@dataclass(frozen=True)
class Table3Options(BenchOptions):
    """The options of `tudsr bench table3`."""

    rows: Annotated[
        int, typer.Option(min=1, max=4, help="How many of the four rows, the cheapest first.")
    ] = 4
