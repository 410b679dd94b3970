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
from tudsr_runtime.resample import BLOCK_ROWS, RowBuffer, Rows, upsample_stream

TileFunction = Callable[[FloatArray], FloatArray]
"""One tile through encoder, UNet and decoder: (1, 3, T, T) in [-1, 1] to (1, 3, T, T); it need not clamp."""
Progress = Callable[[int, int], None]
"""Called after each tile with the number of tiles done and of all tiles."""


def run_stages(
    picture: FloatArray,
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
    across, down = plan.columns, plan.rows
    source = RowBuffer(canvas, down.length)
    blended = np.zeros((3, 0, across.length), np.float32)
    for i, top in enumerate(down.starts):
        window = _pad(source.rows(top, min(top + down.tile, down.length)), down, across)
        begin, end = down.span(i)
        blended = np.concatenate(
            [blended, np.zeros((3, end - begin - blended.shape[1], across.length), np.float32)], axis=1
        )
        for j in range(len(across.starts)):
            tile = _run_tile(window, across, j, run, f"row {i + 1}, column {j + 1} of stage {plan.stage + 1}")
            _blend(blended, tile[:, begin - top : end - top], down.weights(i), across, j)
            on_tile()
        finished = down.finished(i) - begin
        yield blended[:, :finished]
        blended = blended[:, finished:].copy()
        if i + 1 < len(down.starts):
            source.drop(down.starts[i + 1])


def _run_tile(window: FloatArray, across: Axis, j: int, run: TileFunction, place: str) -> FloatArray:
    """Tile `j` of a row of tiles, through the stage, checked and clamped: (3, T, T)."""
    left = across.starts[j]
    tile = run(np.ascontiguousarray(window[None, :, :, left : left + across.tile]))[0]
    if not np.isfinite(tile).all():
        raise NotFiniteError(
            f"the model produced NaN or infinity in the tile at {place}",
            hint="a bundle exported with --precision fp32",
        )
    clamped: FloatArray = np.clip(tile, -1, 1)
    return clamped


def _blend(blended: FloatArray, tile: FloatArray, down: FloatArray, across: Axis, j: int) -> None:
    begin, end = across.span(j)
    left = across.starts[j]
    weights = down[:, None] * across.weights(j)
    blended[:, :, begin:end] += weights * tile[:, :, begin - left : end - left]


def _pad(window: FloatArray, down: Axis, across: Axis) -> FloatArray:
    """Extend a canvas that is shorter than a tile at the bottom and on the right."""
    if down.length < down.tile:
        window = window[:, padding_index(down.length, down.padded)]
    if across.length < across.tile:
        window = window[:, :, padding_index(across.length, across.padded)]
    return window
