"""One enlargement, whole and in its parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tudsr_runtime.bench.measure import Durations, measure
from tudsr_runtime.pictures.read import read_header, read_picture
from tudsr_runtime.pictures.write import write_picture
from tudsr_runtime.planes import FloatArray, PlanarView, noise_tile
from tudsr_runtime.tiling.color import DEFAULT_COLOR, color_method
from tudsr_runtime.tiling.plan import Plan
from tudsr_runtime.tiling.resample import Rows, upsample_stream
from tudsr_runtime.tiling.stages import run_stages
from tudsr_runtime.upscaler import Upscaler


@dataclass(frozen=True)
class Latency:
    """What was measured of one plan.

    `parts` are each measured alone, one after the other, engines as one tile times the number of tiles;
    `engines` are encoder, UNet and decoder, or a network, as the pipeline runs them, several tiles at a time
    where that pays. In `array to array` and `file to file` the parts overlap, so these may take less than
    their sum.
    """

    plan: Plan
    parts: dict[str, Durations]
    engines: Durations
    array_to_array: Durations
    file_to_file: Durations


def measure_latency(
    upscaler: Upscaler, width: int, height: int, scale: float, warmup: int, repeats: int
) -> Latency:
    """Time the enlargement of a width x height picture of coloured noise. Raises as `Upscaler.upscale`."""
    plan = upscaler.plan(width, height, scale)
    image = sample_picture(width, height)

    def timed(work: Callable[[], object]) -> Durations:
        return measure(work, warmup, repeats)

    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.png", Path(folder) / "out.png"
        Image.fromarray(image).save(source)
        large = upscaler.upscale(image, scale)
        parts = {
            "decode": timed(lambda: read_picture(read_header(source), "keep")),
            **_host_parts(image, plan, timed),
            **_engine_parts(upscaler, plan, timed),
            "encode": timed(lambda: _write(source, large, target)),
        }
        return Latency(
            plan,
            parts,
            timed(lambda: run_engines(upscaler, plan)),
            timed(lambda: upscaler.upscale(image, scale)),
            timed(lambda: run_whole(upscaler, source, target, scale)),
        )


def sample_picture(width: int, height: int) -> NDArray[np.uint8]:
    """Noise of 8 px and more, so that it has something of a picture; uint8 (height, width, 3)."""
    shape = max(2, height // 8), max(2, width // 8), 3
    small = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _host_parts(
    image: NDArray[np.uint8],
    plan: Plan,
    timed: Callable[[Callable[[], object]], Durations],
) -> dict[str, Durations]:
    """What numpy does: enlarging canvases; cutting, checking and blending tiles; matching colours."""
    x = PlanarView(image)
    runs = [partial(_unchanged, stage.factor if stage.enlarges else 1) for stage in plan.stages]
    bands = list(run_stages(x, plan.stages, runs))
    match = color_method(DEFAULT_COLOR)
    resample = timed(lambda: _drain(_canvases(x, plan)))
    all_but_engines = timed(lambda: _drain(run_stages(x, plan.stages, runs)))
    blend = Durations(
        max(0.0, all_but_engines.p50 - resample.p50),
        max(0.0, all_but_engines.p90 - resample.p50),
        max(0.0, all_but_engines.min - resample.min),
        resample.n,
    )
    return {
        "resample": resample,
        "blend": blend,
        "colour": timed(lambda: _drain(match(iter(bands), x, plan.product))),
    }


def _engine_parts(
    upscaler: Upscaler, plan: Plan, timed: Callable[[Callable[[], object]], Durations]
) -> dict[str, Durations]:
    """Encoder, UNet and decoder, or the one network, each alone, over all tiles."""
    totals: dict[str, list[Durations]] = {}
    for stage in plan.stages:
        x = noise_tile(stage.source[0].tile)
        names = ("network",) if stage.enlarges else ("encoder", "UNet", "decoder")
        for name, engine in zip(names, upscaler.stage(stage).engines, strict=True):
            totals.setdefault(name, []).append(timed(partial(engine.run, x)).times(stage.tiles))
            x = engine.run(x)
    return {name: _sum(found) for name, found in totals.items()}


def run_engines(upscaler: Upscaler, plan: Plan) -> None:
    """All tiles of the plan through the engines, with nothing around them."""
    for stage in plan.stages:
        runner, x = upscaler.stage(stage), noise_tile(stage.source[0].tile)
        with ThreadPoolExecutor(runner.parallel) as pool:
            _drain(pool.map(lambda _, run=runner.run, x=x: run(x), range(stage.tiles)))


def _sum(found: list[Durations]) -> Durations:
    p50, p90, least = (sum(getattr(one, key) for one in found) for key in ("p50", "p90", "min"))
    return Durations(p50, p90, least, found[0].n)


def _canvases(x: PlanarView, plan: Plan) -> Rows:
    rows, height = iter([x[:, 0 : plan.height]]), plan.height
    for stage in plan.stages:
        if not stage.enlarges:
            rows = upsample_stream(rows, height, stage.factor)
        height *= stage.factor
    return rows


def run_whole(upscaler: Upscaler, source: Path, target: Path, scale: float) -> None:
    """Enlarge a picture from file to file, as `tudsr upscale` does it."""
    picture = read_picture(read_header(source), "keep")
    plan = upscaler.plan(picture.width, picture.height, scale)
    bands = upscaler.upscale_rows(picture.levels, scale)
    write_picture(picture, bands, plan.output_width, plan.output_height, target)


def _write(source: Path, large: NDArray[np.uint8], target: Path) -> None:
    picture = read_picture(read_header(source), "keep")
    bands = (large[y : y + 256].astype(np.float32) / np.float32(255) for y in range(0, len(large), 256))
    write_picture(picture, bands, large.shape[1], large.shape[0], target)


def _unchanged(factor: int, x: FloatArray) -> FloatArray:
    """What stands for a stage at no cost."""
    return x if factor == 1 else x.repeat(factor, axis=2).repeat(factor, axis=3)


def _drain(items: Iterable[object]) -> None:
    deque(items, maxlen=0)
