"""Seconds of Table 3's rows by the tiles that cost least, against tiles of the bundle's own size alone.

    python -m benchmarks.plan_speed --bundle BUNDLE [--rows 4] [--whole 1] [--rounds 3] [--precision bf16]
        [--backend auto] [--threads N] -o OUTPUT

BUNDLE has tiles of several sizes. Three ways: tiles of its own size with an overlap of 128 px, tiles by cost
with that overlap, and by cost with the bundle's own, which is what `tudsr upscale` does. Every size of tiles
that the plans of --rows need is run once for warm-up and then --rounds times, all in turn, in stage 1 for
both stages where these compute as much; a picture's seconds are the medians times the planner's counts, with
nothing around the engines. The rows of --whole are run whole as well, from array to array, the first and the
last way in turn, --rounds times. Seconds are by the clock, and of this process's processor time, which other
work on the machine moves less. Writes OUTPUT.json and OUTPUT.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tudsr_runtime import Upscaler
from tudsr_runtime.bench.latency import sample_picture
from tudsr_runtime.bench.measure import describe_machine
from tudsr_runtime.bench.table3 import PUBLISHED, Published
from tudsr_runtime.tiling.axis import OVERLAP
from tudsr_runtime.tiling.plan import Plan, StagePlan

OWN, SIZES, CHEAPEST = (
    f"own size alone, {OVERLAP} px",
    f"by cost, {OVERLAP} px",
    "by cost, the bundle's overlap",
)
Place = tuple[int, int | None]
"""A size of tiles in px, and the multiply-adds of one."""


@dataclass
class Spent:
    """Seconds of runs, by the clock and of the processor."""

    clock: list[float]
    processor: list[float]

    def add(self, work: Callable[[], object]) -> None:
        """Run `work` by the clock."""
        started, used = time.perf_counter(), time.process_time()
        work()
        self.clock.append(time.perf_counter() - started)
        self.processor.append(time.process_time() - used)

    def medians(self) -> dict[str, float]:
        """Of the runs."""
        found = {"clock_s": statistics.median(self.clock), "processor_s": statistics.median(self.processor)}
        return found | {"runs": len(self.clock)}


def ways(args: argparse.Namespace) -> dict[str, Upscaler]:
    options = {"precision": args.precision, "threads": args.threads, "sanity": False}
    cheapest = Upscaler(args.bundle, args.backend, "cpu", **options)
    bundle = cheapest.bundle
    own = Upscaler(bundle, args.backend, "cpu", overlap=OVERLAP, tile=bundle.manifest.tile, **options)
    return {OWN: own, SIZES: cheapest.with_look(overlap=OVERLAP), CHEAPEST: cheapest}


def place(upscaler: Upscaler, stage: StagePlan) -> Place:
    return stage.columns.tile, upscaler.bundle.macs(stage.stage, stage.columns.tile)


def tmac(plan: Plan, upscaler: Upscaler) -> float:
    """Multiply-adds of a picture, in 1e12, as the bundle counts them."""
    return sum(stage.tiles * (place(upscaler, stage)[1] or 0) for stage in plan.stages) / 1e12


def run_tile(upscaler: Upscaler, stage: StagePlan) -> None:
    side = stage.source[0].tile
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
    upscaler.stage(stage).run(x)


def time_tiles(upscaler: Upscaler, plans: list[Plan], rounds: int) -> dict[Place, Spent]:
    """Tiles of every place that the plans have, in turn."""
    used = [stage for plan in plans for stage in plan.stages]
    # The first stage's where several have one.
    stages = {place(upscaler, stage): stage for stage in sorted(used, key=lambda one: -one.stage)}
    spent = {where: Spent([], []) for where in sorted(stages)}
    for number in range(rounds + 1):
        for where, found in spent.items():
            warm_up = Spent([], [])
            counted = found if number else warm_up
            counted.add(partial(run_tile, upscaler, stages[where]))
            sys.stderr.write(f"round {number}, {where[0]} px: {counted.clock[-1]:.1f} s\n")
    return spent


def time_whole(upscalers: dict[str, Upscaler], row: Published, rounds: int) -> dict[str, Spent]:
    """A row from array to array, the first and the last way in turn."""
    picture = sample_picture(row.side, row.side)
    spent = {name: Spent([], []) for name in (OWN, CHEAPEST)}
    for number in range(rounds + 1):
        for name in spent:
            upscaler = upscalers[name]
            plan = row.plan(upscaler)
            warm_up = Spent([], [])
            # Engines are loaded by a tile; a whole picture more would tell nothing.
            work: Callable[[], object] = partial(upscaler.upscale, picture, row.scale, plan.notation)
            if not number:
                work = partial(_each_once, upscaler, plan)
            (found := spent[name] if number else warm_up).add(work)
            sys.stderr.write(f"whole, round {number}, {name}: {found.clock[-1]:.1f} s\n")
    return spent


def _each_once(upscaler: Upscaler, plan: Plan) -> None:
    for stage in plan.stages:
        run_tile(upscaler, stage)


def described(plan: Plan) -> str:
    return ", ".join(f"{stage.tiles} of {stage.columns.tile} px" for stage in plan.stages)


def by_tiles(plan: Plan, upscaler: Upscaler, spent: dict[Place, Spent]) -> dict[str, float]:
    """A picture's seconds: medians times the plan's counts."""
    each = [(stage.tiles, spent[place(upscaler, stage)].medians()) for stage in plan.stages]
    return {key: sum(tiles * found[key] for tiles, found in each) for key in ("clock_s", "processor_s")}


def measure(args: argparse.Namespace, upscalers: dict[str, Upscaler]) -> dict[str, Any]:
    rows = {number: PUBLISHED[number - 1] for number in sorted({*args.rows, *args.whole})}
    plans = {(number, name): row.plan(one) for number, row in rows.items() for name, one in upscalers.items()}
    timed = [plan for (number, _), plan in plans.items() if number in args.rows]
    spent = time_tiles(upscalers[CHEAPEST], timed, args.rounds)
    whole = {number: time_whole(upscalers, PUBLISHED[number - 1], args.rounds) for number in args.whole}
    return {
        "command": "python -m benchmarks.plan_speed " + " ".join(args.command),
        "machine": describe_machine(),
        "runs_by": str(upscalers[CHEAPEST].choice),
        "tiles": [
            {
                "tile": tile,
                "tmac": (macs or 0) / 1e12,
                **one.medians(),
                "all_clock_s": one.clock,
                "all_processor_s": one.processor,
            }
            for (tile, macs), one in spent.items()
        ],
        "rows": [
            {
                "row": number,
                "picture": f"{row.side} px, x{row.scale}",
                "ways": [
                    {
                        "way": name,
                        "tiles": described(plan := plans[number, name]),
                        "tmac": tmac(plan, upscalers[name]),
                        "by_tiles": by_tiles(plan, upscalers[name], spent) if number in args.rows else None,
                        "whole": whole[number][name].medians() if name in whole.get(number, {}) else None,
                    }
                    for name in upscalers
                ],
            }
            for number, row in rows.items()
        ],
    }


def markdown(record: dict[str, Any]) -> str:
    """The tables of a result."""
    lines = [
        f"`{record['command']}`",
        "",
        f"{', '.join(map(str, record['machine'].values()))}; {record['runs_by']}",
        "",
        "| row | picture | way | tiles | TMAC | by tiles: s | processor s | whole: s | processor s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        for way in row["ways"]:
            spent = " | ".join(seconds(way[kind]) for kind in ("by_tiles", "whole"))
            lines.append(
                f"| {row['row']} | {row['picture']} | {way['way']} | {way['tiles']} | {way['tmac']:.1f} "
                f"| {spent} |"
            )
        least = " | ".join(saved(row["ways"][0], row["ways"][-1]))
        lines.append(f"| {row['row']} | saved by the last way | | | {least} |")
    if record["tiles"]:
        lines += ["", "| tile | TMAC | s | processor s | runs |", "|---|---|---|---|---|"]
    lines += [
        f"| {one['tile']} px | {one['tmac']:.3f} | {one['clock_s']:.2f} | {one['processor_s']:.2f} "
        f"| {one['runs']} |"
        for one in record["tiles"]
    ]
    return "\n".join(lines) + "\n"


def seconds(found: dict[str, float] | None) -> str:
    """Two cells."""
    return f"{found['clock_s']:.0f} | {found['processor_s']:.0f}" if found else "not run |"


def saved(own: dict[str, Any], cheapest: dict[str, Any]) -> list[str]:
    """By how much each figure of a row fell."""
    pairs = [(own["tmac"], cheapest["tmac"])]
    for kind in ("by_tiles", "whole"):
        for key in ("clock_s", "processor_s"):
            pairs.append((own[kind][key], cheapest[kind][key]) if own[kind] else (0.0, 0.0))
    return [f"{1 - after / before:.0%}" if before else "" for before, after in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--rows", type=int, nargs="*", default=[len(PUBLISHED)], choices=range(1, 5))
    parser.add_argument("--whole", type=int, nargs="*", default=[], choices=range(1, 5))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    args.command = [("BUNDLE" if one == args.bundle else one) for one in sys.argv[1:]]
    record = measure(args, ways(args))
    args.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    args.output.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
    sys.stdout.write(markdown(record))


if __name__ == "__main__":
    main()
