"""The options of `tudsr upscale`: name, type, default and help of each, once."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args, get_type_hints

import typer

from tudsr_runtime.engines.options import engines_option, threads_option

OnExists = Literal["error", "skip", "overwrite", "rename"]
"""What becomes of an output that exists and is not what the same command made of the same picture."""
Metadata = Literal["keep", "strip"]
Wrap = Literal["none", "x", "xy"]
Decoder = Literal["full", "light"]

SIZE, RESULT, LOOK, MACHINE, REPORT = "Size", "Result", "Model and look", "Machine", "What is told"
"""The groups of the help."""

_size, _result, _look, _machine, _report = (
    partial(typer.Option, rich_help_panel=group) for group in (SIZE, RESULT, LOOK, MACHINE, REPORT)
)


@dataclass(frozen=True)
class UpscaleOptions:
    """The options of `tudsr upscale`."""

    scale: Annotated[
        float | None,
        _size(help="Enlarge by this, 1 to 32.  [default: 8, the product of --factors, or a network's]"),
    ] = None
    width: Annotated[int | None, _size(metavar="PX", min=1, help="Width of the result.")] = None
    height: Annotated[int | None, _size(metavar="PX", min=1, help="Height of the result.")] = None
    longest: Annotated[int | None, _size(metavar="PX", min=1, help="Longest side of the result.")] = None
    megapixels: Annotated[float | None, _size(metavar="MP", help="Size of the result, in 10^6 pixels.")] = (
        None
    )
    max_input_megapixels: Annotated[
        int, _size(metavar="N", min=1, help="Refuse pictures that are larger than this.")
    ] = 100
    max_output_megapixels: Annotated[
        int, _size(metavar="N", min=1, help="Refuse pictures that would become larger than this.")
    ] = 268
    output: Annotated[
        str | None,
        _result(
            "-o",
            "--output",
            metavar="FILE|DIR",
            help="A .png, .jpg, .webp, .tif, .bmp or .avif file, a folder, or - for stdout."
            "  [default: NAME_x8.EXT beside each input]",
        ),
    ] = None
    format: Annotated[
        str | None,
        _result("--format", metavar="EXT", help="png, jpg, webp, tif, bmp or avif.  [default: the input's]"),
    ] = None
    on_exists: Annotated[
        OnExists, _result(help="What to do where an output exists; what the same command made is skipped.")
    ] = "error"
    overwrite: Annotated[bool, _result("--overwrite", help="The same as --on-exists overwrite.")] = False
    recursive: Annotated[bool, _result("-r", "--recursive", help="Search folders below folders.")] = False
    compare: Annotated[
        Path | None,
        _result(
            metavar="FILE",
            help="Also inputs, bicubic and results side by side: a page (.html) or one picture (.png).",
        ),
    ] = None
    include: Annotated[
        tuple[str, ...],
        _result(
            metavar="PATTERN",
            help="Of folders take only what matches, such as '*.jpg' or 'holiday/*'; repeatable.",
        ),
    ] = ()
    exclude: Annotated[
        tuple[str, ...], _result(metavar="PATTERN", help="Of folders leave out what matches; repeatable.")
    ] = ()
    shard: Annotated[
        str | None,
        _result(
            metavar="I/N",
            help="Do one of N parts, 1 to N, or auto[/N] on Slurm and Kubernetes: docs/many-machines.md.",
        ),
    ] = None
    quality: Annotated[int, _result(min=1, max=100, help="Of JPEG, WebP and AVIF.")] = 95
    compression: Annotated[
        int, _result(min=0, max=9, help="Of PNG and TIFF, 0 (none) to 9 (slow); 1 is good for photographs.")
    ] = 1
    metadata: Annotated[Metadata, _result(help="EXIF and XMP; the colour profile is always kept.")] = "keep"
    bundle: Annotated[str, _look(metavar="nano|DIR|hf:OWNER/NAME", help="The model to run.")] = "nano"
    strength: Annotated[
        str,
        _look(
            metavar="S[,S2]",
            help="From the plain Lanczos enlargement (0) to the model's result (1), one number a stage.",
        ),
    ] = "1"
    color: Annotated[
        str, _look(metavar="NAME", help="Colour correction: lowfreq, wavelet, adain or none.")
    ] = "lowfreq"
    wrap: Annotated[
        Wrap, _look(help="Edges that meet: x for 360-degree panoramas, xy for tiles of a texture.")
    ] = "none"
    decoder: Annotated[
        Decoder, _look(help="light takes less than two thirds of the time, where the model has one.")
    ] = "full"
    factors: Annotated[
        str | None,
        _look(
            metavar="MxN", help="Factors of stage 1 and 2, such as 4x2, 4x- or -x4.  [default: by --scale]"
        ),
    ] = None
    overlap: Annotated[
        int | None,
        _look(metavar="PX", help="Least overlap of neighbouring tiles.  [default: the bundle's, else 128]"),
    ] = None
    backend: Annotated[
        str,
        _machine(
            metavar="NAME",
            help="Engine library: auto, openvino, onnxruntime, onnxruntime-rtx, tensorrt-rtx, tensorrt.",
        ),
    ] = "auto"
    device: Annotated[
        str,
        _machine(
            metavar="NAME",
            help="auto, cpu, cuda (NVIDIA) or cuda:1; untested: gpu and npu (Intel), coreml, directml, "
            "migraphx.",
        ),
    ] = "auto"
    precision: Annotated[str, _machine(metavar="NAME", help="Arithmetic: auto, fp32, bf16 or fp16.")] = "auto"
    threads: Annotated[int | None, threads_option(MACHINE)] = None
    engines: Annotated[Path | None, engines_option(MACHINE)] = None
    dry_run: Annotated[
        bool, _report("--dry-run", help="Show tiles, memory and a time estimate; write nothing.")
    ] = False
    as_json: Annotated[bool, _report("--json", help="One JSON object a line on stdout.")] = False
    verbose: Annotated[
        bool, _report("-v", "--verbose", help="Also how the back end was chosen, and why.")
    ] = False
    quiet: Annotated[bool, _report("-q", "--quiet", help="Only results and errors.")] = False

    @property
    def where_taken(self) -> OnExists:
        """What becomes of an output that exists."""
        return "overwrite" if self.overwrite else self.on_exists


@dataclass(frozen=True)
class WatchOptions(UpscaleOptions):
    """The options of `tudsr watch`: those of `tudsr upscale` for a folder, and when a file is whole."""

    settle: Annotated[
        float,
        _result(metavar="S", min=0, help="A picture is taken once it has not changed for so many seconds."),
    ] = 1.0


NOT_OF_WATCH = ("output", "compare", "dry_run")
"""Options that `tudsr watch` does not take."""


def as_command(inputs: Sequence[Path], options: UpscaleOptions) -> str:
    """The command line of these inputs and options, for a shell; what is the default is left out."""
    hints = get_type_hints(UpscaleOptions, include_extras=True)
    words = ["tudsr", "upscale", *map(str, inputs)]
    for field in fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        declared = get_args(hints[field.name])[1]
        # Within Annotated, typer takes the first name in the place of the default.
        names = [name for name in (declared.default, *declared.param_decls) if isinstance(name, str)]
        name = names[-1] if names else f"--{field.name.replace('_', '-')}"
        for one in value if isinstance(value, tuple) else (value,):
            words += [name] if isinstance(one, bool) else [name, _as_word(one)]
    return shlex.join(words)


def _as_word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_strength(text: str) -> tuple[float, float]:
    """The strength of stage 1 and stage 2 from "0.5", for both, or "1.0,0.6". Raises UsageError."""
    try:
        parts = [float(part) for part in text.split(",")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 2:
        from tudsr_runtime.errors import UsageError, quoted

        raise UsageError(f"strength must be a number, or two with a comma between, not {quoted(text)}")
    return parts[0], parts[-1]
