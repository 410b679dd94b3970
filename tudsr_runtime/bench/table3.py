"""The four rows of the paper's Table 3, beside the published column."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from tudsr_runtime.batch.estimate import Estimator
from tudsr_runtime.bench.latency import run_engines, sample_picture
from tudsr_runtime.bench.measure import Durations, measure
from tudsr_runtime.tiling.plan import Plan, plan_upscale
from tudsr_runtime.upscaler import Upscaler


@dataclass(frozen=True)
class Published:
    """A row of Table 3: seconds a picture of TUDSR-S on an NVIDIA H800."""

    side: int
    scale: int
    seconds: float

    def plan(self, upscaler: Upscaler) -> Plan:
        """The plan with the factors of the paper, or of the bundle's one stage."""
        manifest = upscaler.bundle.manifest
        stages, own = len(manifest.stages), manifest.own_factors
        factors = plan_upscale(self.side, self.side, self.scale, stages=stages, own=own).notation
        return upscaler.plan(self.side, self.side, self.scale, factors)


PUBLISHED = (
    Published(128, 4, 0.0596),
    Published(128, 8, 0.4201),
    Published(256, 4, 0.4296),
    Published(256, 8, 2.2848),
)
PUBLISHED_GPU = "NVIDIA H800"
PASSES = 2
"""How often a row is run in each round: the engines alone, and from array to array."""


@dataclass(frozen=True)
class Row:
    """One row as measured here: the engines alone, and from array to array."""

    published: Published
    plan: Plan
    engines: Durations
    whole: Durations


def forecast(upscaler: Upscaler, warmup: int, repeats: int, rows: int = len(PUBLISHED)) -> float:
    """Seconds that `measure_rows` will take, about, by a tile of each stage and size. Raises as it."""
    estimator = Estimator(upscaler)
    each = sum(estimator.seconds(published.plan(upscaler)) for published in PUBLISHED[:rows])
    return PASSES * (warmup + repeats) * each


def measure_rows(upscaler: Upscaler, warmup: int, repeats: int, rows: int = len(PUBLISHED)) -> Iterator[Row]:
    """The first `rows` rows one by one, in the paper's two steps even if the bundle is good for fewer.

    Raises as `Upscaler.upscale`.
    """
    for published in PUBLISHED[:rows]:
        image = sample_picture(published.side, published.side)
        plan = published.plan(upscaler)
        whole = measure(partial(upscaler.upscale, image, published.scale, plan.notation), warmup, repeats)
        engines = measure(partial(run_engines, upscaler, plan), warmup, repeats)
        yield Row(published, plan, engines, whole)


def row_record(row: Row) -> dict[str, Any]:
    """One row as plain JSON; seconds."""
    return {
        **row.plan.as_json(),
        "engines": dataclasses.asdict(row.engines),
        "array_to_array": dataclasses.asdict(row.whole),
        "published": row.published.seconds,
        "published_on": PUBLISHED_GPU,
    }


def table_markdown(rows: list[Row], here: str) -> str:
    """The table; `here` names what it ran on, so that nobody takes the two columns for one machine's."""
    same = "H800" in here
    told = "same kind of GPU" if same else f"different GPU: measured on {here}"
    lines = [
        "| output | input, scale | factors | tiles | cost | engines p50 s | array to array p50 s | p90 s "
        f"| min s | published s, {PUBLISHED_GPU} ({told}) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        plan, whole = row.plan, row.whole
        lines.append(
            f"| {plan.output_width} x {plan.output_height} | {plan.width} x {plan.height}, x{plan.scale:g} "
            f"| {'x'.join(map(str, plan.factors))} | {_tiles(plan)} | {_cost(plan)} | {row.engines.p50:.4f} "
            f"| {whole.p50:.4f} | {whole.p90:.4f} | {whole.min:.4f} | {row.published.seconds} |"
        )
    return "\n".join(lines)


def _tiles(plan: Plan) -> str:
    """The tiles of each stage with their size."""
    return ", ".join(f"{stage.tiles} of {stage.columns.tile} px" for stage in plan.stages)


def _cost(plan: Plan) -> str:
    return "" if plan.cost is None or plan.costs is None else f"{plan.cost:.1f} {plan.costs.unit}"
