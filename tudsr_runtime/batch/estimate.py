"""What a picture will take, before any work: time by trying one tile of each stage, memory by its plan."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from tudsr_runtime.pictures.read import Header
from tudsr_runtime.pictures.write import held_bytes
from tudsr_runtime.planes import noise_tile
from tudsr_runtime.tiling.color import WHOLE_PICTURE
from tudsr_runtime.tiling.plan import Plan, StagePlan
from tudsr_runtime.upscaler import Upscaler


@dataclass
class Estimator:
    """Estimates for the pictures of one run. A tile of each stage and size is timed when first needed."""

    upscaler: Upscaler
    _seconds: dict[tuple[int, int], float] = field(default_factory=dict)

    def seconds(self, plan: Plan) -> float:
        """Time in the engines; reading, colour and writing go on beside. Errors as `Upscaler.upscale`."""
        return sum(stage.tiles * self._per_tile(stage) for stage in plan.stages)

    def _per_tile(self, stage: StagePlan) -> float:
        place = stage.stage, stage.columns.tile
        if place not in self._seconds:
            run = self.upscaler.stage(stage).run
            tile = noise_tile(stage.source[0].tile)
            run(tile)
            started = time.monotonic()
            run(tile)
            self._seconds[place] = time.monotonic() - started
        return self._seconds[place]


def goes_by_columns(plan: Plan, header: Header, target: Path) -> bool:
    """Whether the picture takes less memory when its tiles go by columns (`Plan.by_columns`)."""
    return plan.by_columns(_collected(plan, header, target))


def host_bytes(plan: Plan, header: Header, target: Path, color: str) -> int:
    """Memory beside engines and libraries, in bytes, about: to decode, or then to enlarge, the greater."""
    collected = _collected(plan, header, target)
    tiles = plan.turned.held_bytes + collected if plan.by_columns(collected) else plan.held_bytes
    encoded = held_bytes(target, plan.output_width, plan.output_height)
    # What follows the statistics of all of it waits for its last row.
    waiting = 12 * plan.width * plan.height * plan.product**2 if color in WHOLE_PICTURE else 0
    kept = plan.width * plan.height * header.pixel_bytes
    return max(header.decoding_bytes, kept + tiles + encoded + waiting)


def _collected(plan: Plan, header: Header, target: Path) -> int:
    """Bytes of the result that columns are collected in."""
    if held_bytes(target, 1, 1):
        return 0
    return plan.output_width * plan.output_height * header.pixel_bytes
