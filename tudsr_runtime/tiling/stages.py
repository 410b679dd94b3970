"""The stages as a stream of rows: only the current row of tiles and its overlap are ever held.

    input rows -> upsample by M -> canvas rows -> tiles -> stage 1 -> blended rows
               -> upsample by N -> canvas rows -> tiles -> stage 2 -> blended rows

A stage that is a network enlarges by itself: it reads tiles of the rows, and they are blended as a canvas.
Where a stage's strength is below 1, its blended rows are drawn towards the Lanczos enlargement of its input.
Tiles run in threads of their own, a few ahead of their blending, so that the engines never wait for numpy.
Nothing is rounded on the way. All arrays are float32 in [-1, 1]; rows are (3, rows, width), tiles (1, 3, T,
T).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import tee

import numpy as np

from tudsr_runtime.errors import DeviceError, MemoryExhausted, NotFiniteError
from tudsr_runtime.planes import FloatArray, Planes, TileFunction
from tudsr_runtime.tiling.axis import Axis, padding_index
from tudsr_runtime.tiling.plan import StagePlan
from tudsr_runtime.tiling.resample import (
    BLOCK_ROWS,
    RowBuffer,
    Rows,
    area_average,
    resize_stream,
    upsample_stream,
)
from tudsr_runtime.tiling.run_ahead import run_ahead
from tudsr_runtime.tiling.sanity import find_fault

Progress = Callable[[int, int], None]
"""Called after each tile with the number of tiles done and of all tiles."""


@dataclass(frozen=True)
class Tile:
    """Pixels (1, 3, T, T) and where they lie: tile row and column, from 0."""

    pixels: FloatArray
    row: int
    column: int


def run_stages(
    picture: Planes,
    plans: Sequence[StagePlan],
    runs: Sequence[TileFunction],
    progress: Progress | None = None,
    parallel: int = 1,
    again: Sequence[TileFunction | None] | None = None,
    sanity: bool = True,
    turned: bool = False,
    strength: Sequence[float] | None = None,
) -> Rows:
    """Send a (3, h, w) picture in [-1, 1] through the stages; yields the rows of the enlarged picture,
    clamped.

    Args:
        strength: per stage of `plans`, as in `draw_towards_lanczos`; None for 1 throughout.
        parallel: number of tiles that run at a time.
        again: per stage, what a tile is run through that came back wrong.
        sanity: as in `find_fault`.
        turned: whether picture, plans and result are transposed; the model sees every tile upright.

    Raises:
        NotFiniteError: a tile came back wrong, the second time too, or there is no second time.
    """
    total = sum(plan.tiles for plan in plans)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    height, width = picture.shape[1:]
    rows: Rows = (picture[:, y : y + BLOCK_ROWS] for y in range(0, height, BLOCK_ROWS))
    pool = ThreadPoolExecutor(parallel, "tudsr-tile")
    try:
        seconds, strengths = again or [None] * len(runs), strength or [1.0] * len(runs)
        for plan, run, second, s in zip(plans, runs, seconds, strengths, strict=True):
            rows, faithful = tee(rows) if s < 1 else (rows, rows)
            canvas = rows if plan.enlarges else upsample_stream(rows, height, plan.factor)
            upright = Runner(plan.stage, run, second, sanity, plan.factor if plan.enlarges else 1)
            checked = upright.turned_tile if turned else upright.tile
            rows = run_stage(canvas, plan, checked, count, pool, parallel)
            if s < 1:
                lanczos = resize_stream(faithful, height, height * plan.factor, width * plan.factor)
                rows = draw_towards_lanczos(rows, lanczos, s)
            height, width = height * plan.factor, width * plan.factor
        yield from rows
    finally:
        pool.shutdown(cancel_futures=True)


def run_stage(
    canvas: Rows,
    plan: StagePlan,
    run: Callable[[Tile], FloatArray],
    on_tile: Callable[[], None],
    pool: ThreadPoolExecutor,
    parallel: int = 1,
) -> Rows:
    """One stage over the rows of what it reads; yields the blended rows of its canvas."""
    # One more than run at a time, so that an engine that becomes free finds the next tile ready.
    results = run_ahead(run, _tiles(RowBuffer(canvas), plan), pool, parallel + 1)
    ramp = np.zeros((3, 0, plan.columns.length), np.float32)
    for i in range(len(plan.rows.starts)):
        band = _blend_row(results, plan, i, on_tile)
        band[:, : ramp.shape[1]] += ramp
        finished = plan.rows.finished(i) - plan.rows.span(i)[0]
        yield band[:, :finished]
        ramp = band[:, finished:].copy()


def draw_towards_lanczos(rows: Rows, lanczos: Rows, strength: float) -> Rows:
    """lanczos + s (rows - lanczos), clamped: 1 is the model's result, 0 the plain enlargement.

    In pixels and not in latents: what the autoencoder loses is not lost at 0, and the bilinear canvas that
    the model reads is no end to go back to (of clean pictures it is 1 dB below Lanczos).
    """
    buffer, y = RowBuffer(lanczos), 0
    for band in rows:
        begin, y = y, y + band.shape[1]
        plain = buffer.rows(begin, y)
        buffer.drop(y)
        yield np.clip(plain + np.float32(strength) * (band - plain), -1, 1)


def _tiles(source: RowBuffer, plan: StagePlan) -> Iterator[Tile]:
    """The tiles of what a stage reads, row by row, each an array of its own."""
    across, down = plan.source
    for i, top in enumerate(down.starts):
        source.drop(top)
        window = _pad(source.rows(top, min(top + down.tile, down.length)), down, across)
        for j, left in enumerate(across.starts):
            yield Tile(np.array(window[None, :, :, left : left + across.tile], order="C"), i, j)


def _blend_row(
    results: Iterator[FloatArray], plan: StagePlan, i: int, on_tile: Callable[[], None]
) -> FloatArray:
    """Row `i` of tiles, weighted along both axes, over the rows of its span: (3, rows, canvas width)."""
    across, down = plan.columns, plan.rows
    top, (begin, end) = down.starts[i], down.span(i)
    band = np.zeros((3, end - begin, across.length), np.float32)
    for j, left in enumerate(across.starts):
        tile = next(results)
        first, last = across.span(j)
        weights = down.weights(i)[:, None] * across.weights(j)
        band[:, :, first:last] += weights * tile[:, begin - top : end - top, first - left : last - left]
        on_tile()
    return band


@dataclass(frozen=True)
class Runner:
    """A stage, what its bad tiles are run through, and whether they are looked at (see `run_stages`).

    `enlarges`: how many times larger than what it reads the stage makes a tile by itself.
    """

    stage: int
    run: TileFunction
    again: TileFunction | None
    sanity: bool
    enlarges: int = 1

    def tile(self, tile: Tile) -> FloatArray:
        """One tile through the stage, checked and clamped: (3, T, T)."""
        result = self.run(tile.pixels)[0]
        fault = self._fault(tile, result)
        place = f"stage {self.stage + 1}, tile row {tile.row + 1}, column {tile.column + 1}"
        if fault is not None and self.again is not None:
            result = _second_try(tile, self.again, f"the model {fault} in {place}")
            fault = self._fault(tile, result)
        if fault is not None:
            hint = "another bundle" if self.again else "--precision fp32, with a bundle that has it"
            raise NotFiniteError(f"the model {fault} in {place}", hint=hint)
        clamped: FloatArray = np.clip(result, -1, 1)
        return clamped

    def _fault(self, tile: Tile, result: FloatArray) -> str | None:
        reduced = area_average(result, self.enlarges) if self.enlarges > 1 else result
        return find_fault(tile.pixels[0], reduced, self.sanity)

    def turned_tile(self, tile: Tile) -> FloatArray:
        """The same of a tile of a transposed canvas, transposed again."""
        upright = np.ascontiguousarray(tile.pixels.swapaxes(2, 3))
        return self.tile(Tile(upright, tile.column, tile.row)).swapaxes(1, 2)


def _second_try(tile: Tile, again: TileFunction, fault: str) -> FloatArray:
    """The tile in float32; that it cannot be had must not hide why it was wanted."""
    try:
        result: FloatArray = again(tile.pixels)[0]
        return result
    except DeviceError as error:
        raise NotFiniteError(f"{fault}, and fp32 cannot be tried: {error}", hint=error.hint) from error
    except MemoryExhausted as error:
        raise MemoryExhausted(f"{error} ({fault}, so fp32 was tried)", hint=error.hint) from error


def _pad(window: FloatArray, down: Axis, across: Axis) -> FloatArray:
    """Extend a canvas that is shorter than a tile at the bottom and on the right."""
    if down.length < down.tile:
        window = window[:, padding_index(down.length, down.padded)]
    if across.length < across.tile:
        window = window[:, :, padding_index(across.length, across.padded)]
    return window
