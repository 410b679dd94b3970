"""`tudsr bench latency`, `tudsr bench table3` and `tudsr bench tiles`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.bench.latency import measure_latency
from tudsr_runtime.bench.measure import describe_clocks, describe_machine, describe_memory
from tudsr_runtime.bench.options import BenchOptions, LatencyOptions, Table3Options
from tudsr_runtime.bench.report import facts_markdown, latency_markdown, latency_record
from tudsr_runtime.bench.table3 import PUBLISHED, forecast, measure_rows, row_record, table_markdown
from tudsr_runtime.bench.tiles import measure_tiles, tile_record, tiles_markdown
from tudsr_runtime.engines.choose import build_missing
from tudsr_runtime.files import make_folder
from tudsr_runtime.installation import engine_libraries
from tudsr_runtime.terminal import Terminal, clock, counted
from tudsr_runtime.tile_times import store_times
from tudsr_runtime.upscaler import Upscaler


def latency(options: LatencyOptions) -> None:
    """Time one enlargement and its parts. Raises as `Upscaler.upscale`, and OutputError."""
    terminal = Terminal()
    side = options.size
    with _upscaler(options, terminal, lambda made: made.plan(side, side, options.scale).places) as upscaler:
        found = measure_latency(upscaler, side, side, options.scale, options.warmup, options.repeats)
        facts = _facts(upscaler, options)
    _publish(options, "latency", facts, latency_markdown(found), latency_record(found))


def table3(options: Table3Options) -> None:
    """Time the paper's four rows, or the first of them. Raises as `Upscaler.upscale`, and OutputError."""
    terminal = Terminal()
    with _upscaler(options, terminal, partial(_of_table3, options.rows)) as upscaler:
        how = options.warmup, options.repeats, options.rows
        runs = f"{counted(options.rows, 'row')} of {options.warmup + options.repeats} rounds"
        terminal.note(f"about {clock(forecast(upscaler, *how))} for {runs}")
        rows = []
        for row in measure_rows(upscaler, *how):
            terminal.note(f"{row.plan.output_width} px: {row.whole.p50:.3f} s")
            rows.append(row)
        facts = _facts(upscaler, options)
    on_gpu = upscaler.choice.device.startswith("cuda")
    table = table_markdown(rows, str(facts.get("gpu") if on_gpu else facts["processor"]))
    _publish(options, "table3", facts, table, {"rows": [row_record(row) for row in rows]})


def tiles(options: BenchOptions) -> None:
    """Time a tile of every size, and keep it for the planner. Raises as `table3`."""
    terminal = Terminal()
    with _upscaler(options, terminal, lambda made: made.bundle.places) as upscaler:
        found = []
        for one in measure_tiles(upscaler, options.warmup, options.repeats):
            terminal.note(f"stage {one.stage + 1}, {one.tile} px: {one.each.p50:.4f} s a tile")
            found.append(one)
        facts = _facts(upscaler, options)
        times = {(one.stage, one.tile): one.each.p50 for one in found}
        kept = store_times(upscaler.bundle, upscaler.choice, options.threads, times)
    _publish(options, "tiles", facts, tiles_markdown(found), {"tiles": [tile_record(one) for one in found]})
    terminal.note(f"kept in {kept}: sizes of tiles are chosen by it from now on")


def _of_table3(rows: int, upscaler: Upscaler) -> Iterator[tuple[int, int]]:
    for row in PUBLISHED[:rows]:
        yield from row.plan(upscaler).places


def _upscaler(
    options: BenchOptions, terminal: Terminal, places: Callable[[Upscaler], Iterable[tuple[int, int]]]
) -> Upscaler:
    """What is measured, with the engines for `places`, each a stage from 0 and a size of tiles: those that
    the cache lacks are built first, which is said."""
    # Random weights are as fast as trained ones, and their results are let through.
    upscaler = Upscaler(
        options.bundle,
        backend=options.backend,
        device=options.device,
        threads=options.threads,
        precision=options.precision,
        sanity=False,
        notify=terminal.remark,
        engines=options.engines,
        decoder=options.decoder,
    )
    build_missing(upscaler.bundle, upscaler.choice, set(places(upscaler)), terminal)
    return upscaler


def _facts(upscaler: Upscaler, options: BenchOptions) -> dict[str, object]:
    manifest = upscaler.bundle.manifest
    return {
        "bundle": f"{manifest.name}, {manifest.precision}, sha256 {upscaler.bundle.sha256[:16]}",
        "weights": manifest.provenance.get("weights", "as exported"),
        "decoder": upscaler.bundle.decoder,
        "back end": str(upscaler.choice),
        "libraries": ", ".join(f"{name} {version}" for name, version in engine_libraries().items()),
        "runs": f"{options.repeats} after {options.warmup} for warm-up, one picture at a time",
        **describe_machine(),
        **describe_memory(),
        **describe_clocks(),
    }


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
