"""The `tudsr` command: assembles the commands of the packages, each imported only when it runs.

stdout carries results, stderr everything else. Every error that tudsr raises on purpose ends as one line and
an exit code (`tudsr_runtime.entry`); anything else is a bug and shows its traceback.
"""

import sys
import typing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from tudsr_eval.options import AblationOptions, EvalOptions
from tudsr_export.options import ExportOptions
from tudsr_runtime.batch.options import NOT_OF_WATCH, UpscaleOptions, WatchOptions
from tudsr_runtime.bench.options import BenchOptions, LatencyOptions, Table3Options
from tudsr_runtime.engines.options import engines_option, threads_option
from tudsr_runtime.engines.tensorrt.options import BuildOptions
from tudsr_runtime.options import Grouped, command_group, failures_as_json, from_options, named_path, needs
from tudsr_serve.options import ServeOptions
from tudsr_train.options import PairsOptions, TrainOptions


class _EvalGroup(TyperGroup):
    """`tudsr eval PRED` without a word in between: what is no command is an argument of `pictures`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not args or args[0] not in self.commands:
            args = ["pictures", *(args or ["--help"])]
        return super().parse_args(ctx, args)


app = command_group(
    "Image super-resolution by 8 and more, with two one-step diffusion stages.", add_completion=True
)
train_app = command_group("Train the base model, the LoRA adapter of each stage, and a light decoder.")
bundle_app = command_group("Look at a bundle, the folder of ONNX graphs that `tudsr upscale` runs.")
app.add_typer(train_app, name="train")
app.add_typer(bundle_app, name="bundle")
bench_app = command_group("Time this machine.")
app.add_typer(bench_app, name="bench")
eval_app = command_group("Say how good pictures are, beside those of rivals.")
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


@app.command(cls=Grouped)
@from_options
def upscale(
    inputs: Annotated[
        list[Path],
        # Whether they can be read is found out picture by picture: one that cannot must not stop the rest.
        typer.Argument(
            metavar="INPUT...", parser=named_path, help="Pictures, folders of them, patterns, or - for stdin."
        ),
    ],
    options: UpscaleOptions,
) -> None:
    """Enlarge pictures.

    PNG, JPEG, WebP, TIFF, BMP and AVIF are read. In folders, everything named like one is taken, save hidden
    files and earlier results. The path of each result is printed.
    """
    from tudsr_runtime.batch.command import upscale as run

    if options.compare is None:
        run(inputs, options)
    else:
        from tudsr_eval.command import comparison

        run(inputs, options, comparison(options.compare))


@app.command(cls=Grouped)
@partial(from_options, without=NOT_OF_WATCH)
def watch(
    folder: Annotated[
        Path, typer.Argument(metavar="IN", parser=named_path, help="Folder that pictures come into.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", parser=named_path, help="Folder of the results.")],
    options: WatchOptions,
) -> None:
    """Enlarge every picture that comes into a folder, until Ctrl-C.

    What is there already is done first. Stopped and started again, it goes on where it was.
    """
    with needs("watch"):
        from tudsr_runtime.batch.watch_command import watch as run

        run(folder, output, options)


@bundle_app.command("info")
def bundle_info(
    bundle: Annotated[str, typer.Argument(metavar="nano|DIR")],
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest as JSON.")] = False,
) -> None:
    """Print what a bundle says about itself."""
    from tudsr_runtime.bundle_command import bundle_info as run

    with failures_as_json(as_json):
        run(bundle, as_json)


@bundle_app.command("verify")
def bundle_verify(
    bundle: Annotated[str, typer.Argument(metavar="nano|DIR")],
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="Engine library that runs its golden tile.")
    ] = "auto",
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(metavar="NAME", help="auto, fp32, bf16 or fp16.")] = "auto",
    threads: Annotated[int | None, threads_option()] = None,
    engines: Annotated[Path | None, engines_option()] = None,
    decoder: Annotated[
        typing.Literal["full", "light"], typer.Option(help="The decoder that runs, where there are both.")
    ] = "full",
) -> None:
    """Compare every file of a bundle with its manifest, and run its golden tile."""
    from tudsr_runtime.bundle_command import bundle_verify as run

    run(bundle, backend, device, precision, threads, engines, decoder)


@bundle_app.command("list")
def bundle_list(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False,
) -> None:
    """Print the bundles that are here: built in, and pulled from the hub."""
    from tudsr_runtime.hub.command import bundle_list as run

    with failures_as_json(as_json):
        run(as_json)


@bundle_app.command("remove")
def bundle_remove(
    name: Annotated[
        str, typer.Argument(metavar="hf:OWNER/NAME[@REV]", help="Without REV, all of its copies.")
    ],
) -> None:
    """Delete from the cache what was pulled from the hub."""
    from tudsr_runtime.hub.command import bundle_remove as run

    run(name)


@app.command()
def pull(
    name: Annotated[
        str, typer.Argument(metavar="OWNER/NAME[@REV]", help="Repository, and a branch, tag or commit of it.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Also copy it here, to a new folder."),
    ] = None,
) -> None:
    """Download a bundle or an adapter from the Hugging Face hub, and check it.

    Its folder is printed. `--bundle hf:OWNER/NAME` runs it.
    """
    with needs("hub"):
        from tudsr_runtime.hub.command import pull as run

        run(name, output)


@app.command()
def push(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A bundle, or an adapter.")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository; made if there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str | None, typer.Option("-m", "--message", help="Of the commit.")] = None,
) -> None:
    """Send a bundle or an adapter to the Hugging Face hub: the folder becomes the repository.

    A bundle is checked first. The address of the commit is printed.
    """
    with needs("hub"):
        from tudsr_runtime.hub.command import push as run

        run(folder, name, private, message)


@bench_app.command("latency")
@from_options
def bench_latency(options: LatencyOptions) -> None:
    """Time one enlargement, whole and in its parts, with engines loaded."""
    from tudsr_runtime.bench.command import latency

    latency(options)


@bench_app.command("table3")
@from_options
def bench_table3(options: Table3Options) -> None:
    """Time the four rows of the paper's Table 3, beside the published figures.

    How long it will take is said first.
    """
    from tudsr_runtime.bench.command import table3

    table3(options)


@bench_app.command("tiles")
@from_options
def bench_tiles(options: BenchOptions) -> None:
    """Time one tile of every size that the bundle has; `upscale` then chooses sizes by it.

    Without, it chooses by the operations that the bundle counts.
    """
    from tudsr_runtime.bench.command import tiles

    tiles(options)


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
    from tudsr_runtime.engines.tensorrt.command import triton as run

    run(bundle, repository, engines)


@app.command()
def doctor(
    bundle: Annotated[str, typer.Option(metavar="nano|DIR", help="The model to try.")] = "nano",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False,
) -> None:
    """Say what of this machine works, what does not, and what to do: to be pasted into a report.

    Versions, processor, GPU, cache, the bundle, and one tile timed with every back end. No name of yours, of
    your files or of your machine is told. Exit code 6 where something is wrong.
    """
    from tudsr_runtime.doctor.command import doctor as run

    with failures_as_json(as_json):
        run(bundle, as_json)


def _train_command(what: str, help_text: str) -> None:
    """Add `tudsr train WHAT`."""

    def train(options: TrainOptions) -> None:
        with needs("train"):
            from tudsr_train.command import run

            run(what, options)

    train.__doc__ = help_text
    train_app.command(what)(from_options(train))


_train_command("base", "Train a base model from nothing.")
_train_command("stage1", "Train the LoRA of stage 1 (Algorithm 1).")
_train_command("stage2", "Train the LoRA of stage 2 on the pictures of stage 1 (Algorithm 2).")
_train_command("decoder", "Distil a light decoder from the base's own, for `tudsr upscale --decoder light`.")


@train_app.command("pairs")
@from_options
def train_pairs(options: PairsOptions) -> None:
    """Let a teacher restore degraded crops, and keep the pairs to train on."""
    with needs("train"):
        from tudsr_train.command import pairs

        pairs(options)


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


@app.command()
@from_options
def export(options: ExportOptions) -> None:
    """Merge the adapters into the base and write a bundle of ONNX graphs.

    Every graph is compared with the model it came from; a bundle that differs is not written.
    """
    with needs("export"):
        from tudsr_export.command import run

        run(options)


@app.command()
@from_options
def build(options: BuildOptions) -> None:
    """Build TensorRT engines from a bundle.

    TensorRT for RTX needs no GPU for it: an RTX 40 card is sm89. TensorRT builds on the GPU that will run.
    """
    from tudsr_runtime.engines.tensorrt.command import build as run

    run(options)


@app.command(cls=Grouped)
@from_options
def serve(options: ServeOptions) -> None:
    """Enlarge pictures over HTTP, and on a page for the browser.

    The address is printed. Only programs of this machine can ask, unless --host says otherwise.
    """
    with needs("serve"):
        from tudsr_serve.command import serve as run

        run(options)


@app.command("app", cls=Grouped)
@from_options
def open_app(options: ServeOptions) -> None:
    """Enlarge pictures on a page in the browser: `tudsr serve`, and the page is opened."""
    with needs("serve"):
        from tudsr_serve.command import serve as run

        run(options, browser=True)


@eval_app.command("pictures")
@from_options
def eval_pictures(
    predictions: Annotated[
        list[Path],
        typer.Argument(metavar="PRED...", readable=False, help="Pictures or folders of them, one a method."),
    ] = [],  # noqa: B006
    *,
    options: EvalOptions,
) -> None:
    """Say how good pictures are, by figures and side by side.

    NAME_x4.png finds NAME.png in --reference and --input. Several PRED are several methods in one table.
    `tudsr eval ablation` compares the plans of a bundle.
    """
    with needs("eval"):
        from tudsr_eval.command import evaluate

        evaluate(predictions, options)


@eval_app.command("ablation")
@from_options
def eval_ablation(
    bundle: Annotated[str, typer.Argument(metavar="nano|DIR", help="The bundle.")],
    pictures: Annotated[Path, typer.Argument(metavar="DIR", help="Pictures to enlarge.")],
    options: AblationOptions,
) -> None:
    """Compare a bundle's stages alone with both, as the paper's Tables 4 and 5 do.

    x4: M4, N4 and M2N2; x8: M8, N8 and M4N2. What is there already is not made again.
    """
    with needs("eval"):
        from tudsr_eval.command import ablation

        ablation(bundle, pictures, options)


def main() -> int:
    """Run the command line; the exit code."""
    from tudsr_runtime.entry import run

    return run(app)


if __name__ == "__main__":
    sys.exit(main())
