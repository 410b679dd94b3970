"""The options of `tudsr serve` and `tudsr app`: name, type, default and help of each, once."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from tudsr_runtime.engines.options import backend_option, engines_option, threads_option

REACH, LIMITS, MACHINE = "Who may ask", "Limits", "Machine"
"""The groups of the help."""

_reach, _limits, _machine = (
    partial(typer.Option, rich_help_panel=group) for group in (REACH, LIMITS, MACHINE)
)


@dataclass(frozen=True)
class ServeOptions:
    """What `tudsr serve` is told."""

    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is every network.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8000
    bundle: Annotated[
        tuple[str, ...],
        typer.Option(metavar="nano|DIR", help="A model that may be asked for; repeatable.  [default: nano]"),
    ] = ()
    decoder: Annotated[
        Literal["full", "light"], typer.Option(help="light is faster, where all of these models have one.")
    ] = "full"
    token_file: Annotated[
        Path | None,
        _reach(
            metavar="FILE", help="Answer only who sends this token.  [default: TUDSR_TOKEN, else everybody]"
        ),
    ] = None
    allow_origin: Annotated[
        tuple[str, ...], _reach(metavar="ORIGIN", help="Let pages of https://NAME ask (CORS); repeatable.")
    ] = ()
    allow_host: Annotated[
        tuple[str, ...],
        _reach(
            metavar="NAME",
            help="A name that it may be asked by; repeatable.  [default: localhost, or any with --host]",
        ),
    ] = ()
    max_upload_megabytes: Annotated[int, _limits(metavar="MB", min=1, help="Refuse larger files.")] = 64
    max_input_megapixels: Annotated[int, _limits(metavar="N", min=1, help="Refuse larger pictures.")] = 64
    max_output_megapixels: Annotated[
        int, _limits(metavar="N", min=1, help="Refuse pictures that would become larger than this.")
    ] = 268
    queue: Annotated[int, _limits(metavar="N", min=1, help="Pictures that may wait.")] = 16
    deadline: Annotated[int, _limits(metavar="SECONDS", min=1, help="Give a picture up after that time.")] = (
        900
    )
    keep: Annotated[int, _limits(metavar="SECONDS", min=1, help="Remove results after that time.")] = 600
    max_disk_megabytes: Annotated[int, _limits(metavar="MB", min=1, help="Room for uploads and results.")] = (
        4000
    )
    backend: Annotated[str, backend_option(MACHINE)] = "auto"
    device: Annotated[str, _machine(metavar="NAME", help="As in `tudsr upscale`.")] = "auto"
    precision: Annotated[str, _machine(metavar="NAME", help="auto, fp32, bf16 or fp16.")] = "auto"
    threads: Annotated[int | None, threads_option(MACHINE)] = None
    engines: Annotated[Path | None, engines_option(MACHINE)] = None
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only the address and errors.")] = False
