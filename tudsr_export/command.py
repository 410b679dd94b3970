"""`tudsr export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tudsr_runtime.errors import OutputError, UsageError
from tudsr_runtime.manifest import NAME

if TYPE_CHECKING:
    from tudsr_export.parity import Report

PRECISIONS = ("fp16", "fp32")
UNKNOWN_LICENCE = "unspecified"


def run(
    base: Path,
    stage1: Path | None,
    stage2: Path | None,
    output: Path,
    merge_lora: bool,
    precision: str = "fp16",
    name: str | None = None,
    licence: str = UNKNOWN_LICENCE,
    overwrite: bool = False,
    about: Path | None = None,
) -> None:
    """Export a base and one or two LoRA adapters as the bundle `output`.

    Writes the bundle's path to stdout; what was chosen, and the figures of the gates, to stderr. The caller
    has nothing to print.

    Args:
        base: folder in the diffusers layout.
        stage1: PEFT folder of stage 1's adapter; None leaves the stage out, and the bundle has one stage.
        stage2: likewise of stage 2; one of the two must be given.
        output: the bundle's folder; it appears whole or not at all, its parents are made.
        merge_lora: must be true, since graphs hold merged weights: `--merge-lora` is a flag that is on when
            left out, and there is no `--no-merge-lora`.
        precision: "fp16" or "fp32".
        name: None takes the name of the folder `output`.
        licence: of the weights, as a SPDX identifier or a name.
        overwrite: whether an existing `output` may be replaced.
        about: Markdown file that the model card begins with; None leaves it out.

    Raises:
        UsageError: no adapter, an unknown precision, or a name that a bundle cannot have (exit 2).
        BundleError: base or adapter missing, damaged or misfit (exit 5).
        OutputError: `output` exists, or cannot be written (exit 8).
        NotFiniteError: the graphs do not compute what the adapters do (exit 9); nothing is written.
    """
    adapters = {n: folder for n, folder in ((1, stage1), (2, stage2)) if folder is not None}
    if not adapters:
        raise UsageError("there is nothing to export", hint="--stage1 ADAPTER, --stage2 ADAPTER, or both")
    if not merge_lora:
        raise UsageError("a bundle holds merged weights; the adapters must be merged", hint="--merge-lora")
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be {' or '.join(PRECISIONS)}, not {precision!r}")
    name = name if name is not None else output.resolve().name
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a bundle", hint="--name with letters, digits, '.', '_' and '-'"
        )
    if licence == UNKNOWN_LICENCE:
        _say("licence of the weights: unspecified (--licence says it; it follows from the base's licence)")

    from tudsr_export.parity import Report
    from tudsr_export.pipeline import ExportPlan, export_bundle

    _make_parent(output)
    report = Report()
    try:
        plan = ExportPlan(
            base, adapters, output, precision, name, licence, overwrite, about=_text(about) if about else ""
        )
        export_bundle(plan, report, _say)
    finally:
        _show(report)
    sys.stdout.write(f"{output}\n")


def _make_parent(output: Path) -> None:
    try:
        output.resolve().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--about {path}: not a readable text file ({error})") from error


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _show(report: Report) -> None:
    """The gates' figures as a table on stderr, after a failure too."""
    from rich.console import Console
    from rich.table import Table

    if not report.measurements:
        return
    table = Table("gate", "of", "figure", "limit", "PSNR, dB", "largest")
    for m in report.measurements:
        cells = (m.value, ".1e"), (m.gate.limit, ".1e"), (m.psnr_db, ".1f"), (m.largest, ".1e")
        shown = ("-" if number is None else format(number, spec) for number, spec in cells)
        table.add_row(m.gate.name, m.subject, *shown)
    Console(stderr=True).print(table)
