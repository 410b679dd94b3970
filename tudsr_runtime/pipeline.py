"""The stages as a stream of rows: only the current row of tiles and its overlap are ever held.

    input rows -> upsample by M -> canvas rows -> tiles -> stage 1 -> blended rows
               -> upsample by N -> canvas rows -> tiles -> stage 2 -> blended rows

Nothing is rounded on the way. All arrays are float32 in [-1, 1]; rows are (3, rows, width), tiles (1, 3, T,
T).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tudsr_runtime.errors import NotFiniteError
from tudsr_runtime.geometry import Axis, FloatArray, padding_index
from tudsr_runtime.plan import StagePlan
from tudsr_runtime.planes import Planes
from tudsr_runtime.resample import BLOCK_ROWS, RowBuffer, Rows, upsample_stream

TileFunction = Callable[[FloatArray], FloatArray]
"""One tile through encoder, UNet and decoder: (1, 3, T, T) in [-1, 1] to (1, 3, T, T); it need not clamp."""
Progress = Callable[[int, int], None]
"""Called after each tile with the number of tiles done and of all tiles."""


def run_stages(
    picture: Planes,
    plans: Sequence[StagePlan],
    runs: Sequence[TileFunction],
    progress: Progress | None = None,
) -> Rows:
    """Send a (3, h, w) picture in [-1, 1] through the stages; yields the rows of the enlarged picture,
    clamped.

    Raises:
        NotFiniteError: a tile came back with NaN or infinity.
    """
    total = sum(plan.tiles for plan in plans)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    height = picture.shape[1]
    rows: Rows = (picture[:, y : y + BLOCK_ROWS] for y in range(0, height, BLOCK_ROWS))
    for plan, run in zip(plans, runs, strict=True):
        canvas = upsample_stream(rows, height, plan.factor)
        rows = run_stage(canvas, plan, run, count)
        height *= plan.factor
    return rows


def run_stage(canvas: Rows, plan: StagePlan, run: TileFunction, on_tile: Callable[[], None]) -> Rows:
    """One stage over the rows of its canvas; yields the blended rows of the same canvas."""
    source = RowBuffer(canvas)
    ramp = np.zeros((3, 0, plan.columns.length), np.float32)
    for i in range(len(plan.rows.starts)):
        band = _run_row(source, plan, i, run, on_tile)
        band[:, : ramp.shape[1]] += ramp
        finished = plan.rows.finished(i) - plan.rows.span(i)[0]
        yield band[:, :finished]
        ramp = band[:, finished:].copy()


def _run_row(
    source: RowBuffer, plan: StagePlan, i: int, run: TileFunction, on_tile: Callable[[], None]
) -> FloatArray:
    """Row `i` of tiles, weighted along both axes, over the rows of its span: (3, rows, canvas width)."""
    across, down = plan.columns, plan.rows
    top, (begin, end) = down.starts[i], down.span(i)
    source.drop(top)
    window = _pad(source.rows(top, min(top + down.tile, down.length)), down, across)
    band = np.zeros((3, end - begin, across.length), np.float32)
    for j, left in enumerate(across.starts):
        tile = _run_tile(window[:, :, left : left + across.tile], plan.stage, (i, j), run)
        first, last = across.span(j)
        weights = down.weights(i)[:, None] * across.weights(j)
        band[:, :, first:last] += weights * tile[:, begin - top : end - top, first - left : last - left]
        on_tile()
    return band


def _run_tile(tile: FloatArray, stage: int, place: tuple[int, int], run: TileFunction) -> FloatArray:
    """One (3, T, T) tile through the stage, checked and clamped."""
    result = run(np.ascontiguousarray(tile[None]))[0]
    if not np.isfinite(result).all():
        row, column = place
        raise NotFiniteError(
            f"the model made NaN or infinity in stage {stage + 1}, tile row {row + 1}, column {column + 1}",
            hint="a bundle exported with --precision fp32",
        )
    clamped: FloatArray = np.clip(result, -1, 1)
    return clamped


def _pad(window: FloatArray, down: Axis, across: Axis) -> FloatArray:
    """Extend a canvas that is shorter than a tile at the bottom and on the right."""
    if down.length < down.tile:
        window = window[:, padding_index(down.length, down.padded)]
    if across.length < across.tile:
        window = window[:, :, padding_index(across.length, across.padded)]
    return window
