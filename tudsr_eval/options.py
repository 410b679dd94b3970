"""The options of `tudsr eval` and `tudsr eval ablation`: name, type, default and help of each, once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tudsr_runtime.engines.options import backend_option, threads_option


@dataclass(frozen=True)
class PaperOptions:
    """How the paper's metrics are had: pyiqa in an environment of the user's own."""

    paper_python: Annotated[
        Path | None, typer.Option(metavar="PYTHON", help="Of your own environment with pyiqa, for paper.")
    ] = None
    paper_dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="RealSR, ...: print the paper's figures beside yours.")
    ] = None
    paper_device: Annotated[str, typer.Option(metavar="NAME", help="Where pyiqa runs: cpu or cuda.")] = "cpu"
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where pyiqa keeps its weights.  [default: its caches]")
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Of what pyiqa draws.")] = 0


@dataclass(frozen=True)
class EvalOptions(PaperOptions):
    """What `tudsr eval` is told."""

    reference: Annotated[
        Path | None, typer.Option(metavar="DIR|FILE", help="What they should have been, matched by name.")
    ] = None
    source: Annotated[
        Path | None,
        typer.Option("--input", metavar="DIR|FILE", help="What they were made from, matched by name."),
    ] = None
    metrics: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Names or groups with commas between: always, niqe, dists, lpips, paper..."
        ),
    ] = "always"
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Write scores.jsonl, scores.md and index.html there."
        ),
    ] = None
    tile: Annotated[int, typer.Option(metavar="PX", min=64, help="Side of the tiles, for seam energy.")] = 512
    vgg16: Annotated[
        str | None, typer.Option(metavar="FILE|ID", help="VGG16, for dists: torchvision's names.")
    ] = None
    dists: Annotated[
        str, typer.Option(metavar="FILE", help="DISTS' weights.  [default: of an installed DISTS-pytorch]")
    ] = ""
    alexnet: Annotated[
        str | None, typer.Option(metavar="FILE", help="AlexNet, for lpips: torchvision's names.")
    ] = None
    lpips: Annotated[
        str | None, typer.Option(metavar="FILE", help="LPIPS' heads.  [default: of an installed lpips]")
    ] = None
    inception: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Inception as TorchScript, for fid and kid.")
    ] = None
    self_check: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Compare with the scores published in DIR, and do nothing else."),
    ] = None
    page_pictures: Annotated[
        int, typer.Option(metavar="N", min=0, help="So many subjects as pictures on the page.")
    ] = 40
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Pictures at a time.  [default: one for each CPU]")
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a picture in the place of the table.")
    ] = False
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only results and errors.")] = False


@dataclass(frozen=True)
class _Results:
    """Where an ablation's results go; it has no default."""

    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of results and scores.")
    ]


@dataclass(frozen=True)
class AblationOptions(PaperOptions, _Results):
    """What `tudsr eval ablation` is told; a dataclass takes the fields of its last parent first."""

    scale: Annotated[int, typer.Option(help="4 (Table 4) or 8 (Table 5).")] = 4
    reference: Annotated[
        Path | None, typer.Option(metavar="DIR|FILE", help="What they should become, matched by name.")
    ] = None
    metrics: Annotated[str, typer.Option(metavar="LIST", help="As in `tudsr eval`.")] = "always"
    backend: Annotated[str, backend_option()] = "auto"
    device: Annotated[str, typer.Option(metavar="NAME", help="Where to run, as in `tudsr upscale`.")] = "auto"
    threads: Annotated[int | None, threads_option()] = None
