"""What a picture will take, before any work: time by trying one tile of each stage, memory by its plan."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from tudsr_runtime.tiling.plan import Plan, StagePlan
from tudsr_runtime.upscaler import Upscaler

ROWS_OF_TILES = 6
"""Rows of tiles in float32 that a stage holds at its peak, with buffers and bands on their way; measured."""


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
            tile = np.random.default_rng(0).uniform(-1, 1, (1, 3, place[1], place[1])).astype(np.float32)
            run(tile)
            started = time.monotonic()
            run(tile)
            self._seconds[place] = time.monotonic() - started
        return self._seconds[place]


def host_bytes(plan: Plan, held_bytes: int) -> int:
    """Memory beside engines and libraries, in bytes, about.

    Args:
        plan: of the picture; its input is counted with 8 bits per channel.
        held_bytes: of the result where its format is not written row by row, else 0.
    """
    rows = sum(12 * ROWS_OF_TILES * stage.rows.tile * stage.columns.padded for stage in plan.stages)
    return rows + 3 * plan.width * plan.height + held_bytes
