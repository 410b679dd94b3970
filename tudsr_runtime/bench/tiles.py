"""One tile of every size that a bundle has, in every stage: what the planner chooses by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from tudsr_runtime.bench.measure import Durations, measure
from tudsr_runtime.bench.report import seconds
from tudsr_runtime.engines.stages import LoadedStage
from tudsr_runtime.planes import noise_tile
from tudsr_runtime.tiling.axis import plan_axis
from tudsr_runtime.tiling.plan import StagePlan
from tudsr_runtime.upscaler import Upscaler


@dataclass(frozen=True)
class TileTime:
    """A size of tiles in a stage (from 0): seconds a tile, and its multiply-adds where the bundle says.

    As many tiles are under way as the pipeline runs at a time, so that a tile takes its share of them.
    """

    stage: int
    tile: int
    each: Durations
    tmac: float | None


def measure_tiles(upscaler: Upscaler, warmup: int, repeats: int) -> Iterator[TileTime]:
    """Every stage and size, one by one. Raises as `Upscaler.upscale`."""
    for stage, tile in upscaler.bundle.places:
        axis = plan_axis(tile, tile, tile // 2)
        runner = upscaler.stage(StagePlan(stage, 1, axis, axis))
        edge = upscaler.bundle.source_edge(stage, tile)
        some = measure(partial(_run, runner, edge), warmup, repeats)
        each = some.times(1 / runner.parallel)
        macs = upscaler.bundle.macs(stage, tile)
        yield TileTime(stage, tile, each, None if macs is None else macs / 1e12)


def _run(runner: LoadedStage, edge: int) -> None:
    """As many tiles, read with `edge` px a side, as the engines take at a time."""
    x = noise_tile(edge)
    with ThreadPoolExecutor(runner.parallel) as pool:
        list(pool.map(runner.run, [x] * runner.parallel))


def tile_record(one: TileTime) -> dict[str, Any]:
    """One measurement as plain JSON; seconds."""
    return {
        "stage": one.stage + 1,
        "tile": one.tile,
        "each": dataclasses.asdict(one.each),
        "tmac": one.tmac,
        "seconds_per_megapixel": one.each.p50 / one.tile**2 * 1e6,
    }


def tiles_markdown(times: list[TileTime]) -> str:
    """A row for every stage and size."""
    lines = [
        "| stage | tile | TMAC | p50 s | p90 s | min s | s per megapixel |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in times:
        tmac = "" if one.tmac is None else f"{one.tmac:.3g}"
        area = one.each.p50 / one.tile**2 * 1e6
        lines.append(f"| {one.stage + 1} | {one.tile} px | {tmac} | {seconds(one.each)} | {area:.3f} |")
    return "\n".join(lines)
