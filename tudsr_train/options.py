"""The options of `tudsr train`, of stages and of pairs: name, type, default and help of each, once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    tuple[str, ...],
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one value of it; repeatable."),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the whole configuration, explained, and stop.")
]


@dataclass(frozen=True)
class TrainOptions:
    """What `tudsr train` is told besides the stage."""

    config: Annotated[
        Path,
        typer.Option(
            "--config",
            metavar="FILE|NAME",
            help="Training configuration (YAML), or a shipped one: nano/stage1.",
        ),
    ]
    overrides: Overrides = ()
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the run.  [default: `out` of the file]"),
    ] = None
    resume: Annotated[
        str, typer.Option(metavar="auto|never|DIR", help="Go on from the last checkpoint, or one.")
    ] = "auto"
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a result that no run beside it has made.")
    ] = False
    print_config: PrintConfig = False
    check: Annotated[
        bool, typer.Option("--check", help="Read data and weights, try one pair, report memory, and stop.")
    ] = False


@dataclass(frozen=True)
class PairsOptions:
    """What `tudsr train pairs` is told."""

    config: Annotated[
        Path,
        typer.Option(
            "--config", metavar="FILE|NAME", help="Which pairs (YAML), or a shipped one: nano/pairs."
        ),
    ]
    overrides: Overrides = ()
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the pairs.  [default: `out` of the file]"),
    ] = None
    print_config: PrintConfig = False
