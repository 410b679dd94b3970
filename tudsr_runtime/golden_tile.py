"""The golden tile of a bundle: one picture, and what every stage made of it in float32 where it was exported.

A machine that runs the tile and gets the same is set up right, whatever its back end, driver and device.
Every stage gets the clamped output of the one before, a network its centre as far as it reads it; only the
centre of a tile is stored and compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tudsr_runtime.bundle import Bundle
from tudsr_runtime.engines.backend import Choice, Notify
from tudsr_runtime.engines.stages import LoadedEngines
from tudsr_runtime.errors import BundleError, NotFiniteError
from tudsr_runtime.manifest import BundleFile, Golden
from tudsr_runtime.planes import FloatArray

CENTRE = 4
"""The stored centre has 1 / CENTRE of the tile's edge."""
LEAST_DB = 40.0
"""PSNR from which a back end counts as right: half is at 45 dB and more, bfloat16 a little below that."""


@dataclass(frozen=True)
class Figure:
    """What a stage made of the tile, against what is stored: PSNR (infinite where equal), largest error.

    Both of pixels in [0, 1].
    """

    stage: str
    psnr_db: float
    largest: float


def centre(output: FloatArray) -> FloatArray:
    """The centre (1, 3, T / CENTRE, T / CENTRE) of a tile (1, 3, T, T)."""
    return middle(output, output.shape[-1] // CENTRE)


def middle(x: FloatArray, edge: int) -> FloatArray:
    """The middle (1, 3, edge, edge) of a tile."""
    begin = (x.shape[-1] - edge) // 2
    return x[:, :, begin : begin + edge, begin : begin + edge]


def run_golden(
    bundle: Bundle,
    choice: Choice,
    threads: int | None = None,
    notify: Notify = lambda _: None,
) -> list[Figure]:
    """Run the golden tile through all stages.

    Raises:
        BundleError: the tile or what is stored of it has another size than the manifest says.
        NotFiniteError: a stage made NaN or infinity. Otherwise as `Backend.load` and `Engine.run`.
    """
    with LoadedEngines(bundle, choice, threads, notify=notify) as engines:
        return golden_figures(bundle, engines)


def golden_figures(bundle: Bundle, engines: LoadedEngines) -> list[Figure]:
    """What loaded engines of the bundle make of its golden tile; nothing where it has none.

    Raises as `run_golden`.
    """
    golden = bundle.manifest.golden
    if golden is None:
        return []
    bundle.check((golden.input, *_stored(bundle, golden)))
    return list(_figures(bundle, golden, engines))


def require_close(figures: list[Figure]) -> None:
    """Raise NotFiniteError (exit 9) where a figure is below `LEAST_DB`."""
    for figure in figures:
        if not figure.psnr_db >= LEAST_DB:
            raise NotFiniteError(
                f"{figure.stage} on the golden tile is at {figure.psnr_db:.1f} dB, below {LEAST_DB:.0f} dB: "
                "this back end does not compute what the bundle was exported with",
                hint="another --backend or --device; rebuild engines; export with --precision fp32",
            )


def _figures(bundle: Bundle, golden: Golden, engines: LoadedEngines) -> Iterator[Figure]:
    x, tile = read_tile(bundle, golden), bundle.manifest.tile
    for index, (stage, stored) in enumerate(
        zip(bundle.manifest.stages, _stored(bundle, golden), strict=True)
    ):
        output = engines.stage(index).run(np.ascontiguousarray(middle(x, stage.source_edge(tile))))
        if not np.isfinite(output).all():
            raise NotFiniteError(f"{stage.name} made NaN or infinity of the golden tile")
        x = np.clip(output, -1, 1)
        actual, expected = centre(x), np.fromfile(bundle.folder / stored.path, "<f4")
        if expected.size != actual.size:
            raise BundleError(
                f"{bundle.folder / stored.path} holds {expected.size} values, not {actual.size}"
            )
        difference = (actual - expected.reshape(actual.shape)).astype(np.float64) / 2
        mean_square = float(np.square(difference).mean())
        decibels = -10 * math.log10(mean_square) if mean_square else math.inf
        yield Figure(stage.name, decibels, float(np.abs(difference).max()))


def _stored(bundle: Bundle, golden: Golden) -> tuple[BundleFile, ...]:
    """What the stages made of the tile with the decoder that runs."""
    return golden.light if bundle.decoder == "light" else golden.outputs


def read_tile(bundle: Bundle, golden: Golden) -> FloatArray:
    """The picture: what the first stage reads, (1, 3, T, T) in [-1, 1]; of a network (1, 3, T / M, T / M).

    Raises BundleError if it is of another size.
    """
    path = Path(bundle.folder / golden.input.path)
    with Image.open(path) as picture:
        levels = np.asarray(picture.convert("RGB"), np.float32)
    edge = bundle.source_edge(0, bundle.manifest.tile)
    if levels.shape != (edge, edge, 3):
        raise BundleError(f"{path} is {levels.shape[1]} x {levels.shape[0]} px, the tile is {edge} x {edge}")
    x: FloatArray = np.ascontiguousarray(levels.transpose(2, 0, 1)[None]) / np.float32(127.5) - 1
    return x
