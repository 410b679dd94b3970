"""From a scale to the stages' factors, the canvases and the number of tiles, before anything is computed."""

from __future__ import annotations

import math
import numbers
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from tudsr_runtime.errors import BundleError, InputError, UsageError
from tudsr_runtime.tiling.axis import OVERLAP, TILE, Axis, plan_axis

MAX_SCALE = 32
DEFAULT_SCALE = 8
# Stage 2 was trained to follow a x2 step, so N stays 2 (paper, Algorithm 2) and M takes up the scale.
TWO_STAGE_FACTORS = ((4, (2, 2)), (8, (4, 2)), (16, (8, 2)))
ONE_STAGE_FACTORS = (2, 4, 8, 16)


@dataclass(frozen=True)
class StagePlan:
    """One pass over a canvas: stage `stage` of the bundle (from 0), its `factor`, and the tiles per axis."""

    stage: int
    factor: int
    columns: Axis
    rows: Axis

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.columns.starts) * len(self.rows.starts)


@dataclass(frozen=True)
class Plan:
    """What will be computed for one picture, and why. Sizes in px."""

    width: int
    height: int
    scale: float
    output_width: int
    output_height: int
    stages: tuple[StagePlan, ...]
    reason: str

    def __repr__(self) -> str:
        sizes = f"{self.width}x{self.height} -> {self.output_width}x{self.output_height} px"
        return f"<Plan {sizes}, {self.reason}; tiles: {self.tiles}>"

    @property
    def factors(self) -> tuple[int, ...]:
        """The factor of each stage that runs."""
        return tuple(stage.factor for stage in self.stages)

    @property
    def notation(self) -> str:
        """The factors as `plan_upscale` takes them: "4x2", "4x-" or "-x4"."""
        parts = {stage.stage: str(stage.factor) for stage in self.stages}
        return "x".join(parts.get(stage, "-") for stage in range(2))

    @property
    def product(self) -> int:
        """The integer enlargement that the stages make, before the final resize."""
        return math.prod(self.factors)

    @property
    def tiles(self) -> int:
        """Tiles of all stages."""
        return sum(stage.tiles for stage in self.stages)


def plan_upscale(
    width: int,
    height: int,
    scale: float | None = None,
    factors: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    stages: int = 2,
    tile: int | Sequence[int] = TILE,
    overlap: int = OVERLAP,
) -> Plan:
    """Plan the upscaling of a width x height picture.

    The stages enlarge by whole factors whose product is at least `scale` where that is possible; one
    antialiased resize then meets the scale: output side = floor(side scale + 0.5), or `size` exactly.

    Args:
        scale: 1 to 32; None means what `size` says, else the product of `factors`, else 8.
        factors: None to choose by the scale, else "4x2" (both stages), "4x-" (stage 1) or "-x4" (stage 2).
        size: (width, height) of the result in px, in the place of `scale`; each side 1 to 32 times as long.
        stages: how many stages the bundle has, 1 or 2.
        tile: the tile's edge in px, or several to choose from: each stage takes the smallest that holds its
            whole canvas, else the greatest.
        overlap: least overlap of tiles in px; of tiles smaller than the greatest, at most half.

    Raises:
        UsageError: scale, factors or overlap is invalid.
        BundleError: the factors ask for a stage that the bundle does not have.
        InputError: the picture has no pixels.
    """
    if width < 1 or height < 1:
        raise InputError(f"a picture of {width}x{height} px has nothing to upscale")
    if size is not None:
        if scale is not None:
            raise UsageError(f"scale {scale} and size {size} both say how large the result is; give one")
        scale = _scale_to(_checked_size(size), width, height)
    elif scale is None and factors is None:
        scale = DEFAULT_SCALE
    chosen = _parse(factors, stages) if factors is not None else _choose(_checked(scale), stages)
    product = math.prod(factor for _, factor in chosen)
    scale = float(product) if scale is None else _checked(scale)
    output = size or (math.floor(width * scale + 0.5), math.floor(height * scale + 0.5))
    return Plan(
        width,
        height,
        scale,
        *output,
        _plan_stages(width, height, chosen, (tile,) if isinstance(tile, int) else tile, overlap),
        _reason(scale, chosen, product, stages, asked=factors is not None),
    )


def _checked_size(size: object) -> tuple[int, int]:
    try:
        width, height = map(operator.index, size)  # type: ignore[call-overload]  # what is no pair ends here
    except (TypeError, ValueError):
        raise UsageError(f"size must be (width, height) in whole px, not {size!r}") from None
    return width, height


def _scale_to(size: tuple[int, int], width: int, height: int) -> float:
    """The scale of the side that grows most."""
    scales = size[0] / width, size[1] / height
    if not 1 <= min(scales) <= max(scales) <= MAX_SCALE:
        raise UsageError(
            f"{width} x {height} px cannot become {size[0]} x {size[1]}: a side grows 1 to {MAX_SCALE} times"
        )
    return max(scales)


def _checked(scale: object) -> float:
    if not is_number(scale) or not 1 <= float(scale) <= MAX_SCALE:
        raise UsageError(f"scale must be 1 to {MAX_SCALE}, not {scale!r}")
    return float(scale)


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a real number, of numpy too; no boolean and no text."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _choose(scale: float, stages: int) -> tuple[tuple[int, int], ...]:
    """(stage, factor) of each stage to run: the least product that reaches `scale`, else the greatest."""
    if stages == 1:
        return ((0, next((f for f in ONE_STAGE_FACTORS if f >= scale), ONE_STAGE_FACTORS[-1])),)
    pair = next((pair for limit, pair in TWO_STAGE_FACTORS if scale <= limit), TWO_STAGE_FACTORS[-1][1])
    return tuple(enumerate(pair))


def _parse(factors: str, stages: int) -> tuple[tuple[int, int], ...]:
    match = re.fullmatch(r"(\d{1,2}|-)x(\d{1,2}|-)", str(factors), re.ASCII)
    chosen = tuple((i, int(part)) for i, part in enumerate(match.groups()) if part != "-") if match else ()
    if not chosen or not 1 <= math.prod(factor for _, factor in chosen) <= MAX_SCALE:
        raise UsageError(
            f"factors must be two whole numbers with a product up to {MAX_SCALE}, not {factors!r}",
            hint='"4x2", "4x-" for stage 1 alone, or "-x4" for stage 2 alone',
        )
    if chosen[-1][0] >= stages:
        raise BundleError(f"factors {factors!r} ask for stage 2, the bundle has {stages} stage", hint='"4x-"')
    return chosen


def _plan_stages(
    width: int, height: int, chosen: tuple[tuple[int, int], ...], tiles: Sequence[int], overlap: int
) -> tuple[StagePlan, ...]:
    planned = []
    greatest = max(tiles)
    for stage, factor in chosen:
        width, height = width * factor, height * factor
        tile = min((size for size in tiles if size >= max(width, height)), default=greatest)
        least = overlap if tile == greatest else min(overlap, tile // 2)
        try:
            columns, rows = plan_axis(width, tile, least), plan_axis(height, tile, least)
        except ValueError as error:
            raise UsageError(str(error)) from None
        planned.append(StagePlan(stage, factor, columns, rows))
    return tuple(planned)


def _reason(scale: float, chosen: tuple[tuple[int, int], ...], product: int, stages: int, asked: bool) -> str:
    parts = dict(chosen)
    shown = "x".join(str(parts.get(stage, "-")) for stage in range(2))
    why = "as asked" if asked else _why(scale, product, stages)
    if scale == product:
        return f"{shown}, {why}"
    then = "reduced" if scale < product else "enlarged by interpolation"
    return f"{shown} = x{product}, {why}, then {then} to x{scale:g}"


def _why(scale: float, product: int, stages: int) -> str:
    if scale > product:
        return "the most that is chosen automatically"
    return "the least that reaches the scale" + ("" if stages == 2 else " with the bundle's one stage")
