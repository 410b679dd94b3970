"""`tudsr export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tudsr_export.options import UNKNOWN_LICENCE, ExportOptions
from tudsr_export.plan import ExportPlan, NetworkPlan
from tudsr_runtime.engines.tensorrt.command import build, triton
from tudsr_runtime.engines.tensorrt.library import choose_target, open_library
from tudsr_runtime.engines.tensorrt.options import BuildOptions
from tudsr_runtime.errors import BundleError, OutputError, UsageError
from tudsr_runtime.files import make_folder
from tudsr_runtime.manifest import MAX_TILE, MIN_TILE, NAME, MeasuredPlan, read_plans
from tudsr_runtime.streams import printable_lines
from tudsr_runtime.tiling.axis import TILE

if TYPE_CHECKING:
    from tudsr_export.gates import Report

EXPORTED_PRECISIONS = ("fp16", "fp32")


def run(options: ExportOptions, tile: int = TILE) -> None:
    """Export a base and one or two LoRA adapters, or a network, as the bundle `options.output`, for tiles of
    `tile` px.

    Writes the bundle's path to stdout, then those of the engines of `--engine` and the models of `--triton`;
    what was chosen, and the figures of the gates, to stderr. The caller has nothing to print.

    Raises:
        UsageError: no adapter, or an option without a meaning (exit 2).
        BundleError: base, adapter or network missing, damaged or misfit (exit 5).
        DeviceError: no such engine library or GPU, or no spandrel, which is said before the export; or an
            engine cannot be built, which leaves the bundle (exit 6).
        OutputError: the output exists, or cannot be written (exit 8).
        NotFiniteError: the graphs do not compute what the adapters do (exit 9); nothing is written.
    """
    plan = _plan(options, tile)
    for engine in options.engine:
        choose_target(open_library(engine), options.target)
    if options.triton is not None and options.triton.exists():
        raise OutputError(f"{options.triton} exists", hint="another folder for --triton, or remove it")
    if options.licence == UNKNOWN_LICENCE:
        _notify("licence of the weights: unspecified (--licence says it; it follows from the base's licence)")

    from tudsr_export.gates import Report

    make_folder(options.output.resolve().parent)
    report = Report()
    try:
        _export(plan, report)
    finally:
        _show(report)
    sys.stdout.write(f"{options.output}\n")
    sys.stdout.flush()
    for engine in options.engine:
        build(BuildOptions(str(options.output), engine, options.target))
    if options.triton is not None:
        triton(str(options.output), options.triton, [])


def _export(plan: ExportPlan | NetworkPlan, report: Report) -> None:
    if isinstance(plan, NetworkPlan):
        from tudsr_export.network_export import export_network

        export_network(plan, report, _notify)
    else:
        from tudsr_export.export import export_bundle

        export_bundle(plan, report, _notify)


def _plan(options: ExportOptions, tile: int) -> ExportPlan | NetworkPlan:
    """The plan that the options make; PyTorch is not imported yet."""
    adapters = {n: given for n, given in ((1, options.stage1), (2, options.stage2)) if given is not None}
    if options.from_spandrel is not None:
        _require_no_diffusion(options, "--from-spandrel")
    elif options.from_invsr is not None:
        _require_no_diffusion(options, "--from-invsr")
    elif options.base is None:
        hint = "--base DIR with --stage1 or --stage2, or --from-spandrel FILE"
        raise UsageError("no base model to export", hint=hint)
    elif not adapters:
        raise UsageError("there is nothing to export", hint="--stage1 ADAPTER, --stage2 ADAPTER, or both")
    if options.precision not in EXPORTED_PRECISIONS:
        raise UsageError(f"precision must be {' or '.join(EXPORTED_PRECISIONS)}, not {options.precision!r}")
    name = options.name if options.name is not None else options.output.resolve().name
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a bundle", hint="--name with letters, digits, '.', '_' and '-'"
        )
    timesteps = _timesteps(options.timesteps, [1] if options.from_invsr else sorted(adapters))
    about = _text("--about", options.about) if options.about else ""
    plans = _plans(options.plans, len(adapters) or 2) if options.plans else ()
    if options.vgg16 is not None and options.light_decoder is None:
        raise UsageError("--vgg16 judges a light decoder, and there is none", hint="--light-decoder DIR")
    for edge in options.tile:
        if not MIN_TILE <= edge <= MAX_TILE:
            raise UsageError(f"--tile must be {MIN_TILE} to {MAX_TILE} px, not {edge}")

    of_any: dict[str, Any] = {
        "output": options.output,
        "precision": options.precision,
        "name": name,
        "licence": options.licence,
        "overwrite": options.overwrite,
        "tile": tile,
        "about": about,
        "batches": options.batch,
        "tiles": options.tile or None,
        "plans": plans,
    }
    network = options.from_spandrel or options.from_invsr
    if network is not None:
        return NetworkPlan(
            checkpoint=network,
            base=options.base,
            timestep=timesteps.get(1),
            prompt=options.prompt,
            **of_any,
        )
    assert options.base is not None
    return ExportPlan(
        base=options.base,
        adapters=adapters,
        merge=options.merge_lora,
        timesteps=timesteps,
        prompt=options.prompt,
        light_decoder=options.light_decoder,
        vgg16=options.vgg16,
        **of_any,
    )


def _require_no_diffusion(options: ExportOptions, source: str) -> None:
    """UsageError where a network that enlarges by itself stands beside what only adapters have."""
    given: dict[str, object] = {
        "--stage1": options.stage1,
        "--stage2": options.stage2,
        "--no-merge-lora": None if options.merge_lora else True,
        "--light-decoder": options.light_decoder,
    }
    if source == "--from-invsr":
        given["--from-spandrel"] = options.from_spandrel
        if options.base is None:
            raise UsageError(f"{source} needs the base beside it", hint="--base DIR, which holds SD-Turbo")
    else:
        given |= {
            "--base": options.base,
            "--timesteps": options.timesteps,
            "--prompt": options.prompt,
            "--from-invsr": options.from_invsr,
        }
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} has no meaning with {source}", hint=f"leave {name} out")


def _timesteps(text: str | None, stages: list[int]) -> dict[int, int]:
    """`--timesteps 200,50`: one number a stage, in order."""
    if text is None:
        return {}
    numbers = text.split(",")
    if len(numbers) != len(stages) or not all(number.strip().isdecimal() for number in numbers):
        raise UsageError(
            f"--timesteps {text!r}: expected {len(stages)} number{'s' * (len(stages) > 1)}, one a stage",
            hint="--timesteps 200,50" if len(stages) > 1 else "--timesteps 200",
        )
    return {stage: int(number) for stage, number in zip(stages, numbers, strict=True)}


def _text(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {path}: not a readable text file ({error})") from error


def _plans(path: Path, stages: int) -> tuple[MeasuredPlan, ...]:
    try:
        return read_plans(_text("--plans", path), stages)
    except BundleError as error:
        hint = "a list as benchmarks/plans.py writes it for this bundle"
        raise UsageError(f"--plans {path}: {error}", hint=hint) from error


def _notify(line: str) -> None:
    sys.stderr.write(f"{printable_lines(line)}\n")


def _show(report: Report) -> None:
    """The gates' figures as a table on stderr, after a failure too."""
    from rich.console import Console
    from rich.table import Table

    if not report.measurements and not report.notes:
        return
    table = Table("gate", "of", "figure", "limit", "largest error")
    for m in report.measurements:
        spec, unit = (
            (".1f", " dB") if m.gate.least else (".1f", f" {m.gate.unit[:2]}") if m.gate.unit else (".1e", "")
        )
        shown = ("-" if n is None else format(n, spec) + unit for n in (m.value, m.gate.limit))
        table.add_row(m.gate.name, m.subject, *shown, "-" if m.largest is None else format(m.largest, ".1e"))
    for gate, status in report.notes.items():
        table.add_row(gate, "-", status, "-", "-")
    Console(stderr=True).print(table)
