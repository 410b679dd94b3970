"""`tudsr bench latency` and `tudsr bench table3`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any

from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.bench.latency import measure_latency
from tudsr_runtime.bench.measure import describe_machine, describe_memory
from tudsr_runtime.bench.options import BenchOptions, LatencyOptions
from tudsr_runtime.bench.report import facts_markdown, latency_markdown, latency_record
from tudsr_runtime.bench.table3 import PUBLISHED, measure_rows, row_record, table_markdown
from tudsr_runtime.engines.select import BUILT
from tudsr_runtime.files import make_folder
from tudsr_runtime.terminal import Terminal
from tudsr_runtime.tiling.plan import Plan
from tudsr_runtime.upscaler import Upscaler

PACKAGES = ("openvino", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")


def latency(options: LatencyOptions) -> None:
    """Time one enlargement and its parts. Raises as `Upscaler.upscale`, and OutputError."""
    terminal = Terminal()
    side = options.size
    with _upscaler(options, terminal, lambda made: [made.plan(side, side, options.scale)]) as upscaler:
        found = measure_latency(upscaler, side, side, options.scale, options.warmup, options.repeats)
        facts = _facts(upscaler, options)
    _publish(options, "latency", facts, latency_markdown(found), latency_record(found))


def table3(options: BenchOptions) -> None:
    """Time the paper's four rows. Raises as `Upscaler.upscale`, and OutputError."""
    terminal = Terminal()
    with _upscaler(options, terminal, lambda made: [row.plan(made) for row in PUBLISHED]) as upscaler:
        rows = []
        for row in measure_rows(upscaler, options.warmup, options.repeats):
            terminal.note(f"{row.plan.output_width} px: {row.whole.p50:.3f} s")
            rows.append(row)
        facts = _facts(upscaler, options)
    on_gpu = upscaler.choice.device.startswith("cuda")
    table = table_markdown(rows, str(facts.get("gpu") if on_gpu else facts["processor"]))
    _publish(options, "table3", facts, table, {"rows": [row_record(row) for row in rows]})


def _upscaler(
    options: BenchOptions, terminal: Terminal, plans: Callable[[Upscaler], Iterable[Plan]]
) -> Upscaler:
    """What is measured, with the engines for `plans`: those that the cache lacks are built first, which is
    said."""
    # Random weights are as fast as trained ones, and their results are let through.
    upscaler = Upscaler(
        options.bundle,
        backend=options.backend,
        device=options.device,
        threads=options.threads,
        precision=options.precision,
        sanity=False,
        notify=lambda text: terminal.note(f"note: {text}"),
        engines=options.engines,
    )
    if upscaler.choice.backend in BUILT:
        from tudsr_runtime.engines.tensorrt.command import build_missing

        places = {place for plan in plans(upscaler) for place in plan.places}
        build_missing(upscaler.bundle, upscaler.choice, places, terminal)
    return upscaler


def _facts(upscaler: Upscaler, options: BenchOptions) -> dict[str, object]:
    manifest = upscaler.bundle.manifest
    return {
        "bundle": f"{manifest.name}, {manifest.precision}, sha256 {upscaler.bundle.sha256[:16]}",
        "weights": manifest.provenance.get("weights", "as exported"),
        "back end": str(upscaler.choice),
        "libraries": ", ".join(f"{name} {version}" for name, version in _versions().items()),
        "runs": f"{options.repeats} after {options.warmup} for warm-up, one picture at a time",
        **describe_machine(),
        **describe_memory(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _publish(
    options: BenchOptions, name: str, facts: Mapping[str, object], table: str, record: dict[str, Any]
) -> None:
    """Print it, and write it to the folder of -o as NAME.md and NAME.json."""
    terminal = Terminal()
    markdown = f"# {name}\n\n{facts_markdown(facts)}\n\n{table}\n"
    record = {"facts": dict(facts), **record}
    if options.as_json:
        terminal.json(record)
    else:
        terminal.result(markdown.rstrip())
    if options.output is not None:
        make_folder(options.output)
        for suffix, text in (("md", markdown), ("json", json.dumps(record, indent=2) + "\n")):
            with atomic_write(options.output / f"{name}.{suffix}") as file:
                file.write(text.encode())
