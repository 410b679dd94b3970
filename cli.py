"""The `tudsr` command: assembles the commands of the packages, each imported only when it runs.

stdout carries results, stderr everything else. Every error that tudsr raises on purpose ends here, as one
line and an exit code (`tudsr_runtime.errors`); anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
from typer.core import TyperGroup


def _group(help_text: str) -> typer.Typer:
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


class _EvalGroup(TyperGroup):
    """`tudsr eval PRED` without a word in between: what is no command is an argument of `pictures`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not args or args[0] not in self.commands:
            args = ["pictures", *(args or ["--help"])]
        return super().parse_args(ctx, args)


app = _group("Image super-resolution by 8 and more, with two one-step diffusion stages.")
train_app = _group("Train the base model and the LoRA adapter of each stage.")
bundle_app = _group("Look at a bundle, the folder of ONNX graphs that `tudsr upscale` runs.")
app.add_typer(train_app, name="train")
app.add_typer(bundle_app, name="bundle")
bench_app = _group("Time this machine.")
app.add_typer(bench_app, name="bench")
eval_app = _group("Say how good pictures are, beside those of rivals.")
app.add_typer(eval_app, name="eval", cls=_EvalGroup)


def _print_version(wanted: bool) -> None:
    if wanted:
        from tudsr_runtime.version import __version__

        typer.echo(f"tudsr {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def upscale(
    inputs: Annotated[
        list[Path],
        # Whether they can be read is found out picture by picture: one that cannot must not stop the rest.
        typer.Argument(
            metavar="INPUT...", readable=False, help="Pictures, folders of them, patterns, or - for stdin."
        ),
    ],
    scale: Annotated[
        float | None,
        typer.Option(help="Enlarge by this, 1 to 32.  [default: 8, or the product of --factors]"),
    ] = None,
    width: Annotated[int | None, typer.Option(metavar="PX", min=1, help="Width of the result.")] = None,
    height: Annotated[int | None, typer.Option(metavar="PX", min=1, help="Height of the result.")] = None,
    longest: Annotated[
        int | None, typer.Option(metavar="PX", min=1, help="Longest side of the result.")
    ] = None,
    megapixels: Annotated[
        float | None, typer.Option(metavar="MP", help="Size of the result, in 10^6 pixels.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE|DIR",
            readable=False,
            help="A .png, .jpg, .webp, .tif, .bmp or .avif file, a folder, or - for stdout."
            "  [default: NAME_x8.EXT beside each input]",
        ),
    ] = None,
    bundle: Annotated[str, typer.Option(metavar="nano|DIR", help="The model to run.")] = "nano",
    engines: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="TensorRT engines of `tudsr build -o DIR`.  [default: the cache's]"),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Engine library: auto, openvino, onnxruntime, tensorrt-rtx, tensorrt."
        ),
    ] = "auto",
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="auto, cpu, cuda or cuda:1; untested: gpu, npu, coreml, directml, migraphx."
        ),
    ] = "auto",
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="Arithmetic: auto, fp32, bf16 or fp16.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.  [default: the engine library's choice]")
    ] = None,
    factors: Annotated[
        str | None,
        typer.Option(
            metavar="MxN", help="Factors of stage 1 and 2, such as 4x2, 4x- or -x4.  [default: by --scale]"
        ),
    ] = None,
    overlap: Annotated[int, typer.Option(metavar="PX", help="Least overlap of neighbouring tiles.")] = 128,
    color: Annotated[
        str, typer.Option(metavar="NAME", help="Colour correction: lowfreq, wavelet, adain or none.")
    ] = "lowfreq",
    strength: Annotated[
        str,
        typer.Option(
            metavar="S[,S2]",
            help="How much of the model's change is made, 0 to 1, one number a stage; less is more faithful.",
        ),
    ] = "1",
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Search folders below folders.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="The same as --on-exists overwrite."),
    ] = False,
    on_exists: Annotated[
        Literal["error", "skip", "overwrite", "rename"],
        typer.Option(help="What to do where an output exists; what the same command made is skipped."),
    ] = "error",
    output_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="EXT", help="png, jpg, webp, tif, bmp or avif.  [default: the input's]"
        ),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG, WebP and AVIF.")] = 95,
    compression: Annotated[
        int,
        typer.Option(min=0, max=9, help="Of PNG and TIFF, 0 (none) to 9 (slow); 1 is good for photographs."),
    ] = 1,
    metadata: Annotated[
        Literal["keep", "strip"], typer.Option(help="EXIF and XMP; the colour profile is always kept.")
    ] = "keep",
    max_output_megapixels: Annotated[
        int, typer.Option(metavar="N", min=1, help="Refuse pictures that would become larger than this.")
    ] = 268,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show tiles, memory and a time estimate; write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only results and errors.")] = False,
) -> None:
    """Enlarge pictures.

    PNG, JPEG, WebP, TIFF, BMP and AVIF are read. In folders, everything named like one is taken, save hidden
    files and earlier results (NAME_x8.EXT beside NAME). The path of each result is printed.
    """
    from tudsr_runtime.command import UpscaleOptions
    from tudsr_runtime.command import upscale as run

    options = UpscaleOptions(
        output=output,
        scale=scale,
        factors=factors,
        bundle=bundle,
        engines=engines,
        backend=backend,
        device=device,
        precision=precision,
        threads=threads,
        overlap=overlap,
        color=color,
        strength=strength,
        recursive=recursive,
        on_exists="overwrite" if overwrite else on_exists,
        format=output_format,
        width=width,
        height=height,
        longest=longest,
        megapixels=megapixels,
        metadata=metadata,
        quality=quality,
        compression=compression,
        max_output_megapixels=max_output_megapixels,
        as_json=as_json,
        dry_run=dry_run,
        quiet=quiet,
    )
    run(inputs, options)


@bundle_app.command("info")
def bundle_info(
    bundle: Annotated[str, typer.Argument(metavar="nano|DIR")],
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest as JSON.")] = False,
) -> None:
    """Print what a bundle says about itself."""
    from tudsr_runtime.bundle_command import bundle_info as run

    run(bundle, as_json)


@bundle_app.command("verify")
def bundle_verify(
    bundle: Annotated[str, typer.Argument(metavar="nano|DIR")],
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="Engine library that runs its golden tile.")
    ] = "auto",
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(metavar="NAME", help="auto, fp32, bf16 or fp16.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.  [default: the engine library's choice]")
    ] = None,
) -> None:
    """Compare every file of a bundle with its manifest, and run its golden tile."""
    from tudsr_runtime.bundle_command import bundle_verify as run

    run(bundle, backend, device, precision, threads)


Bundle = Annotated[str, typer.Option(metavar="nano|DIR", help="The model to run.")]
Backend = Annotated[str, typer.Option(metavar="NAME", help="Engine library, as in `tudsr upscale`.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="Where to run, as in `tudsr upscale`.")]
Precision = Annotated[str, typer.Option(metavar="NAME", help="Arithmetic: auto, fp32, bf16 or fp16.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads.  [default: the engine library's choice]")
]
Warmup = Annotated[int, typer.Option(min=0, help="Runs that are not counted.")]
Repeats = Annotated[int, typer.Option(min=1, help="Runs that are.")]
Report = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="DIR", help="Write NAME.md and NAME.json there too.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON in the place of Markdown on stdout.")]


@bench_app.command("latency")
def bench_latency(
    bundle: Bundle = "nano",
    backend: Backend = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    size: Annotated[int, typer.Option(metavar="PX", min=1, help="Side of the input picture.")] = 256,
    scale: Annotated[float, typer.Option(help="Enlarge by this, 1 to 32.")] = 8.0,
    warmup: Warmup = 1,
    repeats: Repeats = 5,
    output: Report = None,
    as_json: AsJson = False,
) -> None:
    """Time one enlargement, whole and in its parts, with engines loaded."""
    from tudsr_runtime.bench.command import BenchOptions, latency

    shared = BenchOptions(bundle, backend, device, precision, threads, warmup, repeats, output, as_json)
    latency(shared, size, scale)


@bench_app.command("table3")
def bench_table3(
    bundle: Bundle = "nano",
    backend: Backend = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    warmup: Warmup = 1,
    repeats: Repeats = 5,
    output: Report = None,
    as_json: AsJson = False,
) -> None:
    """Time the four rows of the paper's Table 3, beside the published figures."""
    from tudsr_runtime.bench.command import BenchOptions, table3

    table3(BenchOptions(bundle, backend, device, precision, threads, warmup, repeats, output, as_json))


@bundle_app.command("triton")
def bundle_triton(
    bundle: Annotated[str, typer.Argument(metavar="nano|DIR", help="The bundle.")],
    repository: Annotated[Path, typer.Argument(metavar="REPOSITORY", help="Folder to write.")],
    engines: Annotated[
        list[Path],
        typer.Option(
            metavar="DIR", help="Engines of `tudsr build --engine tensorrt -o DIR`, one for each kind of GPU."
        ),
    ] = [],  # noqa: B006
) -> None:
    """Write a model repository for Triton Inference Server.

    One model for each component, and one ensemble for each stage, which takes a tile.
    """
    from tudsr_runtime.build.command import triton as run

    run(bundle, repository, engines)


Config = Annotated[Path, typer.Option("--config", metavar="FILE", help="Training configuration (YAML).")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Replace one value of it; repeatable.")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder of the run.  [default: `out` of the file]")
]
Resume = Annotated[
    str, typer.Option(metavar="auto|never|DIR", help="Go on from the last checkpoint, or one.")
]


PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the whole configuration, explained, and stop.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Read data and weights, try one pair, report memory, and stop.")
]


@train_app.command("base")
def train_base(
    config: Config,
    overrides: Overrides = [],  # noqa: B006
    out: Out = None,
    resume: Resume = "auto",
    print_config: PrintConfig = False,
    check: Check = False,
) -> None:
    """Train a base model from nothing."""
    _train("base", config, overrides, out, resume, print_config, check)


@train_app.command("stage1")
def train_stage1(
    config: Config,
    overrides: Overrides = [],  # noqa: B006
    out: Out = None,
    resume: Resume = "auto",
    print_config: PrintConfig = False,
    check: Check = False,
) -> None:
    """Train the LoRA of stage 1 (Algorithm 1)."""
    _train("stage1", config, overrides, out, resume, print_config, check)


@train_app.command("stage2")
def train_stage2(
    config: Config,
    overrides: Overrides = [],  # noqa: B006
    out: Out = None,
    resume: Resume = "auto",
    print_config: PrintConfig = False,
    check: Check = False,
) -> None:
    """Train the LoRA of stage 2 on the pictures of stage 1 (Algorithm 2)."""
    _train("stage2", config, overrides, out, resume, print_config, check)


@train_app.command("plot")
def train_plot(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run: OUT.run.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="A .html or .svg file.  [default: RUN/plot.html]"
        ),
    ] = None,
) -> None:
    """Draw losses, logits, gradient norms and validation figures of a run into one file."""
    from tudsr_train.command import plot

    plot(run, output)


def _train(
    stage: str,
    config: Path,
    overrides: list[str],
    out: Path | None,
    resume: str,
    print_config: bool,
    check: bool,
) -> None:
    with _needs("train"):
        from tudsr_train.command import TrainOptions, run

        run(stage, config, TrainOptions(overrides, out, resume, print_config, check))


@app.command()
def export(
    base: Annotated[Path, typer.Option(metavar="DIR", help="Base model, in the layout of diffusers.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Folder to write.")],
    stage1: Annotated[
        Path | None,
        typer.Option(metavar="ADAPTER", help="Of stage 1: a PEFT folder, .safetensors, or .pkl of a peer."),
    ] = None,
    stage2: Annotated[Path | None, typer.Option(metavar="ADAPTER", help="Likewise of stage 2.")] = None,
    merge_lora: Annotated[
        bool,
        typer.Option(
            "--merge-lora/--no-merge-lora", help="Add the adapters to the weights, or keep them beside them."
        ),
    ] = True,
    precision: Annotated[Literal["fp16", "fp32"], typer.Option(help="Numbers of the graphs.")] = "fp16",
    timesteps: Annotated[
        str | None,
        typer.Option(metavar="T1,T2", help="Of each stage.  [default: the adapter's own, else 200 and 50]"),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What to restore towards.  [default: the adapter's, else the base's]"
        ),
    ] = None,
    batch: Annotated[
        list[int], typer.Option(min=2, max=64, help="Another batch size of every graph; repeatable.")
    ] = [],  # noqa: B006
    tile: Annotated[
        list[int], typer.Option(metavar="PX", help="Another, smaller tile size of every graph; repeatable.")
    ] = [],  # noqa: B006
    name: Annotated[
        str | None, typer.Option(help="The bundle's name.  [default: that of its folder]")
    ] = None,
    licence: Annotated[
        str, typer.Option(help="Licence of the weights, as an SPDX identifier.")
    ] = "unspecified",
    about: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Markdown that the model card begins with.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    engine: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="Build engines too: tensorrt-rtx or tensorrt; repeatable."),
    ] = [],  # noqa: B006
    target: Annotated[
        str | None, typer.Option(metavar="SM", help="GPU of the engines.  [default: this machine's]")
    ] = None,
    triton: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a model repository for Triton too.")
    ] = None,
) -> None:
    """Merge the adapters into the base and write a bundle of ONNX graphs.

    Every graph is compared with the model it came from; a bundle that differs is not written.
    """
    with _needs("export"):
        from tudsr_export.command import ExportOptions, run

        run(
            ExportOptions(
                base=base,
                stage1=stage1,
                stage2=stage2,
                output=output,
                merge_lora=merge_lora,
                precision=precision,
                timesteps=timesteps,
                prompt=prompt,
                batch=tuple(batch),
                tile=tuple(tile),
                name=name,
                licence=licence,
                about=about,
                overwrite=overwrite,
                engine=tuple(engine),
                target=target,
                triton=triton,
            )
        )


@app.command()
def build(
    bundle: Annotated[str, typer.Argument(metavar="nano|DIR", help="The bundle.")],
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="Library: tensorrt-rtx or tensorrt.")
    ] = "tensorrt-rtx",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="SM", help="GPU: sm75, sm80, sm86, sm89, sm120 or sm121.  [default: this machine's]"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder of the engines.  [default: in the cache]"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of the graphs: fp16 or fp32, if the bundle has both.  [default: its own]",
        ),
    ] = None,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Print layers, precisions, fusions and memory.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The engines' record as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only results and errors.")] = False,
) -> None:
    """Build TensorRT engines from a bundle.

    TensorRT for RTX needs no GPU for it: an RTX 40 card is sm89. TensorRT builds on the GPU that will run.
    """
    from tudsr_runtime.build.command import build as run

    run(bundle, engine, target, output, precision, inspect, as_json, quiet)


PaperPython = Annotated[
    Path | None, typer.Option(metavar="PYTHON", help="Of your own environment with pyiqa, for paper.")
]
PaperDataset = Annotated[
    str | None, typer.Option(metavar="NAME", help="RealSR, ...: print the paper's figures beside yours.")
]
PaperDevice = Annotated[str, typer.Option(metavar="NAME", help="Where pyiqa runs: cpu or cuda.")]
PaperWeights = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where pyiqa keeps its weights.  [default: its caches]")
]
PaperSeed = Annotated[int, typer.Option(min=0, help="Of what pyiqa draws.")]


@eval_app.command("pictures")
def eval_pictures(
    predictions: Annotated[
        list[Path],
        typer.Argument(metavar="PRED...", readable=False, help="Pictures or folders of them, one a method."),
    ] = [],  # noqa: B006
    reference: Annotated[
        Path | None,
        typer.Option(metavar="DIR|FILE", help="What they should have been, matched by name."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--input", metavar="DIR|FILE", help="What they were made from, matched by name."),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Names or groups with commas between: always, niqe, dists, lpips..."
        ),
    ] = "always",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Write scores.jsonl, scores.md and index.html there."
        ),
    ] = None,
    tile: Annotated[
        int, typer.Option(metavar="PX", min=64, help="Side of the tiles, for seam energy.")
    ] = 512,
    vgg16: Annotated[
        str | None, typer.Option(metavar="FILE|ID", help="VGG16, for dists: torchvision's names.")
    ] = None,
    dists: Annotated[
        str, typer.Option(metavar="FILE", help="DISTS' weights.  [default: of an installed DISTS-pytorch]")
    ] = "",
    alexnet: Annotated[
        str | None, typer.Option(metavar="FILE", help="AlexNet, for lpips: torchvision's names.")
    ] = None,
    lpips: Annotated[
        str | None, typer.Option(metavar="FILE", help="LPIPS' heads.  [default: of an installed lpips]")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Inception as TorchScript, for fid and kid.")
    ] = None,
    self_check: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Compare with the scores published in DIR, and do nothing else."),
    ] = None,
    paper_python: PaperPython = None,
    paper_dataset: PaperDataset = None,
    paper_device: PaperDevice = "cpu",
    weights: PaperWeights = None,
    seed: PaperSeed = 0,
    page_pictures: Annotated[
        int, typer.Option(metavar="N", min=0, help="So many subjects as pictures on the page.")
    ] = 40,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Pictures at a time.  [default: one for each CPU]")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a picture in the place of the table.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only results and errors.")] = False,
) -> None:
    """Say how good pictures are, by figures and side by side.

    NAME_x4.png finds NAME.png in --reference and --input. Several PRED are several methods in one table.
    `tudsr eval ablation` compares the plans of a bundle.
    """
    with _needs("eval"):
        from tudsr_eval.command import Environment, EvalOptions, Weights, evaluate

        evaluate(
            predictions,
            EvalOptions(
                reference=reference,
                source=source,
                metrics=metrics,
                output=output,
                tile=tile,
                weights=Weights(vgg16, dists, alexnet, lpips, inception),
                self_check=self_check,
                paper=Environment(paper_python, paper_device, seed, weights),
                paper_dataset=paper_dataset,
                page_pictures=page_pictures,
                jobs=jobs,
                as_json=as_json,
                quiet=quiet,
            ),
        )


@eval_app.command("ablation")
def eval_ablation(
    bundle: Annotated[str, typer.Argument(metavar="nano|DIR", help="The bundle.")],
    pictures: Annotated[Path, typer.Argument(metavar="DIR", help="Pictures to enlarge.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of results and scores.")
    ],
    scale: Annotated[int, typer.Option(help="4 (Table 4) or 8 (Table 5).")] = 4,
    reference: Annotated[
        Path | None, typer.Option(metavar="DIR|FILE", help="What they should become, matched by name.")
    ] = None,
    metrics: Annotated[str, typer.Option(metavar="LIST", help="As in `tudsr eval`.")] = "always",
    backend: Backend = "auto",
    device: Device = "auto",
    threads: Threads = None,
    paper_python: PaperPython = None,
    paper_dataset: PaperDataset = None,
    paper_device: PaperDevice = "cpu",
    weights: PaperWeights = None,
    seed: PaperSeed = 0,
) -> None:
    """Compare a bundle's stages alone with both, as the paper's Tables 4 and 5 do.

    x4: M4, N4 and M2N2; x8: M8, N8 and M4N2. What is there already is not made again.
    """
    with _needs("eval"):
        from tudsr_eval.command import AblationOptions, Environment, EvalOptions, ablation

        environment = Environment(paper_python, paper_device, seed, weights)
        scoring = EvalOptions(
            reference=reference, metrics=metrics, paper=environment, paper_dataset=paper_dataset
        )
        ablation(bundle, pictures, output, AblationOptions(scale, backend, device, threads), scoring)


def main() -> int:
    """Run the command line; the exit code."""
    _open_closed_streams()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except Exception as error:
        return _report(error)
    return 0


def _open_closed_streams() -> None:
    """A shell may start a program with a stream closed (`2>&-`), for which Python has None.

    In its place: stdin is empty, stderr goes nowhere, writing to stdout fails. Each takes its old number,
    which would else be given to the next file that is opened, a result for instance.
    """
    for name, mode, access in (
        ("stdin", "r", os.O_RDONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, access), mode, encoding="utf-8"))  # noqa: SIM115


def _stop(number: int, _frame: FrameType | None) -> None:
    """End by the way of an exception, so that unfinished files are removed; at the second signal, at once."""
    signal.signal(number, lambda again, _: os._exit(128 + again))
    raise SystemExit(128 + number)


def _report(error: Exception) -> int:
    from tudsr_runtime.errors import TudsrError
    from tudsr_runtime.terminal import describe

    deliberate = isinstance(error, TudsrError)
    if not deliberate or os.environ.get("TUDSR_DEBUG") == "1":
        traceback.print_exception(error)
    if isinstance(error, TudsrError):
        typer.echo(describe(error), err=True)
        return error.exit_code
    typer.echo("error: this is a bug of tudsr; please report it with the lines above", err=True)
    return 1


@contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Say which extra brings a package that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        from tudsr_runtime.errors import DeviceError

        package = (error.name or "").partition(".")[0]
        if package.startswith("tudsr"):
            raise
        raise DeviceError(
            f"the package {package} is not installed", hint=f'pip install "tudsr[{extra}]"'
        ) from error


if __name__ == "__main__":
    sys.exit(main())
