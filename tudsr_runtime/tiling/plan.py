"""What a scale comes to, before anything is computed: the stages' factors, the canvases and the tiles."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from tudsr_runtime.errors import BundleError, InputError, UsageError, quoted
from tudsr_runtime.factors import MAX_SCALE, MAX_SIDE, Factors, format_factors, parse_factors, product
from tudsr_runtime.manifest import MeasuredPlan
from tudsr_runtime.tiling.axis import OVERLAP, TILE, Axis
from tudsr_runtime.tiling.cost import Cut, TileCosts, cuts

DEFAULT_SCALE = 8
# Stage 2 was trained to follow a x2 step, so N stays 2 (paper, Algorithm 2) and M takes up the scale.
TWO_STAGE_FACTORS = ((4, (2, 2)), (8, (4, 2)), (16, (8, 2)))
ONE_STAGE_FACTORS = (2, 4, 8, 16)
ROWS_OF_TILES = 6
"""Rows of tiles in float32 that a stage holds at its peak, with buffers and bands on their way; measured."""


@dataclass(frozen=True)
class StagePlan:
    """One pass over a canvas: stage `stage` of the bundle (from 0), its `factor`, and the tiles per axis.

    `weighed` are the ways to cut the canvas that there were, the one that was taken first. `enlarges`: the
    stage's graph reads the picture and makes the canvas itself.
    """

    stage: int
    factor: int
    columns: Axis
    rows: Axis
    weighed: tuple[Cut, ...] = ()
    enlarges: bool = False

    @property
    def source(self) -> tuple[Axis, Axis]:
        """Where along columns and rows of what it reads its tiles lie."""
        factor = self.factor if self.enlarges else 1
        return self.columns.divided(factor), self.rows.divided(factor)

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.columns.starts) * len(self.rows.starts)

    @property
    def cost(self) -> float | None:
        """What they take, in the unit of the plan's costs; None where it is unknown."""
        return self.weighed[0].cost if self.weighed else None

    @property
    def turned(self) -> StagePlan:
        """The same tiles in the order of columns."""
        weighed = tuple(cut.turned for cut in self.weighed)
        return replace(self, columns=self.rows, rows=self.columns, weighed=weighed)


@dataclass(frozen=True)
class Plan:
    """What will be computed for one picture, and why. Sizes in px.

    `margin`: px (left and right, above and below) of its other side by which the picture is extended first.
    """

    width: int
    height: int
    scale: float
    output_width: int
    output_height: int
    stages: tuple[StagePlan, ...]
    reason: str
    costs: TileCosts | None = None
    margin: tuple[int, int] = (0, 0)

    def __repr__(self) -> str:
        sizes = f"{self.width}x{self.height} -> {self.output_width}x{self.output_height} px"
        return f"<Plan {sizes}, {self.reason}; tiles: {self.tiles}>"

    def as_json(self) -> dict[str, object]:
        """What the plan does, in the keys that every `--json` has for it."""
        return {
            "input_px": [self.width, self.height],
            "output_px": [self.output_width, self.output_height],
            "scale": self.scale,
            "factors": self.factors,
            "tiles": self.tiles,
            "tile_px": [stage.columns.tile for stage in self.stages],
            **({self.costs.unit.lower(): self.cost} if self.costs else {}),
        }

    @property
    def factors(self) -> tuple[int, ...]:
        """The factor of each stage that runs."""
        return tuple(stage.factor for stage in self.stages)

    @property
    def notation(self) -> str:
        """The factors as `plan_upscale` takes them: "4x2", "4x-" or "-x4"."""
        return format_factors(self._chosen)

    @property
    def product(self) -> int:
        """The integer enlargement that the stages make, before the final resize."""
        return product(self._chosen)

    @property
    def tiles(self) -> int:
        """Tiles of all stages."""
        return sum(stage.tiles for stage in self.stages)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Which stage (from 0) runs tiles of which size in px, for each stage that runs."""
        return tuple((stage.stage, stage.columns.tile) for stage in self.stages)

    @property
    def cost(self) -> float | None:
        """What all stages take, in `costs.unit`; None where it is unknown."""
        each = [stage.cost for stage in self.stages]
        return None if None in each else sum(cost for cost in each if cost is not None)

    @property
    def turned(self) -> Plan:
        """The same for the transposed picture."""
        return replace(
            self,
            width=self.height,
            height=self.width,
            output_width=self.output_height,
            output_height=self.output_width,
            stages=tuple(stage.turned for stage in self.stages),
            margin=self.margin[::-1],
        )

    @property
    def held_bytes(self) -> int:
        """Memory of the rows of tiles that are under way, about; those of `turned` are columns."""
        return sum(12 * ROWS_OF_TILES * stage.rows.tile * stage.columns.padded for stage in self.stages)

    def by_columns(self, collecting: int) -> bool:
        """Whether less is held when the tiles go by columns, from left to right.

        Args:
            collecting: bytes of a result that is then collected, as it is wanted by rows; else 0.
        """
        return self.turned.held_bytes + collecting < self.held_bytes

    @property
    def _chosen(self) -> Factors:
        return tuple((stage.stage, stage.factor) for stage in self.stages)


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
    plans: Sequence[MeasuredPlan] = (),
    costs: TileCosts | None = None,
    own: Sequence[int] = (),
) -> Plan:
    """Plan the upscaling of a width x height picture.

    The stages enlarge by whole factors whose product is at least `scale` where that is possible; one
    antialiased resize then meets the scale: output side = floor(side scale + 0.5), or `size` exactly.

    Args:
        scale: 1 to 32; None means what `size` says, else the product of `factors`, else 8, or the first of
            `own`.
        factors: None to choose by the scale, else "4x2" (both stages), "4x-" (stage 1) or "-x4" (stage 2).
        size: (width, height) of the result in px, in the place of `scale`; each side 1 to 32 times as long.
        stages: how many stages the bundle has, 1 or 2.
        tile: the tile's edge in px, or several to choose from (`tudsr_runtime.tiling.cost.cuts`): each stage
            takes the one that costs least, or without `costs` the smallest that holds its whole canvas, else
            the greatest.
        overlap: least overlap of tiles in px.
        costs: what a tile of each of these sizes takes in each stage.
        plans: what the bundle was measured to be good for. Of those for the least scale that is at least
            `scale`, the one that costs least (without `costs`: has the fewest pixels in tiles) is taken;
            where there is none, or where they cost more than the factors that are taken without figures,
            these are.
        own: the factor of each stage, where these are networks that enlarge by themselves and by no other.

    Raises:
        UsageError: scale, factors or overlap is invalid.
        BundleError: the factors ask for a stage that the bundle does not have.
        InputError: the picture has no pixels, or a side of more than 2^31 - 1.
    """
    if width < 1 or height < 1:
        raise InputError(f"a picture of {width}x{height} px has nothing to upscale")
    if max(width, height) > MAX_SIDE:
        raise InputError(f"a picture may have at most {MAX_SIDE} px a side")
    if size is not None:
        if scale is not None:
            raise UsageError(f"scale {scale} and size {size} both say how large the result is; give one")
        scale = _scale_to(_checked_size(size), width, height)
    elif scale is None and factors is None:
        scale = own[0] if own else DEFAULT_SCALE
    tiles = (tile,) if isinstance(tile, int) else tile
    canvases = _Canvases(width, height, tiles, overlap, costs, bool(own))
    if factors is not None:
        chosen = _asked(factors, stages, own)
        scale, why = float(product(chosen)) if scale is None else _checked(scale), "as asked"
    else:
        scale = _checked(scale)
        chosen, why = _choose(scale, stages, plans, canvases, own)
    output = size or (math.floor(width * scale + 0.5), math.floor(height * scale + 0.5))
    planned = canvases.stages(chosen)
    return Plan(width, height, scale, *output, planned, _reason(scale, chosen, why), costs)


def _checked_size(size: object) -> tuple[int, int]:
    try:
        width, height = map(operator.index, size)  # type: ignore[call-overload]  # what is no pair ends here
    except (TypeError, ValueError):
        raise UsageError(f"size must be (width, height) in whole px, not {quoted(size)}") from None
    if max(width, height) > MAX_SIDE:
        raise UsageError(f"size must be at most {MAX_SIDE} px a side")
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
    if not is_number(scale) or not 1 <= scale <= MAX_SCALE:
        raise UsageError(f"scale must be 1 to {MAX_SCALE}, not {quoted(scale)}")
    return float(scale)


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a real number, of numpy too; no boolean and no text."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class _Canvases:
    """A picture's size and what its canvases are tiled with."""

    width: int
    height: int
    tiles: Sequence[int]
    overlap: int
    costs: TileCosts | None
    enlarge: bool = False

    def stages(self, chosen: Factors) -> tuple[StagePlan, ...]:
        planned = []
        width, height = self.width, self.height
        for stage, factor in chosen:
            width, height = width * factor, height * factor
            try:
                step = factor if self.enlarge else 1
                weighed = cuts(width, height, stage, self.tiles, self.overlap, self.costs, step)
            except ValueError as error:
                raise UsageError(str(error)) from None
            axes = weighed[0].columns, weighed[0].rows
            planned.append(StagePlan(stage, factor, *axes, weighed, self.enlarge))
        return tuple(planned)

    def cost(self, chosen: Factors) -> tuple[float, int]:
        """What all tiles take, or else their pixels; of all canvases, where those are equal."""
        stages = self.stages(chosen)
        return (
            sum(
                stage.tiles * stage.columns.tile**2 if stage.cost is None else stage.cost for stage in stages
            ),
            sum(stage.columns.length * stage.rows.length for stage in stages),
        )


def _choose(
    scale: float, stages: int, plans: Sequence[MeasuredPlan], canvases: _Canvases, own: Sequence[int]
) -> tuple[Factors, str]:
    """The factors to run, and why: the cheapest that the bundle's figures or the rule without them allow."""
    limit = min((plan.scale for plan in plans if plan.scale >= scale), default=None)
    listed = sorted((plan for plan in plans if plan.scale == limit), key=lambda plan: -plan.psnr_db)
    best = min(listed, key=lambda plan: canvases.cost(parse_factors(plan.factors)), default=None)
    unmeasured = _by_networks(scale, own) if own else _without_figures(scale, stages)
    why = _why_networks(scale, unmeasured, own) if own else _why(scale, unmeasured, stages)
    if best is None:
        return unmeasured, why
    measured = parse_factors(best.factors)
    # What serves a large scale may cost more than what the rule has for a smaller one.
    if product(unmeasured) >= scale and canvases.cost(unmeasured) < canvases.cost(measured):
        return unmeasured, why
    figures = f"{best.psnr_db:.2f} dB, SSIM {best.ssim:.3f}"
    return measured, f"the cheapest that the bundle is good for up to x{limit:g} (measured: {figures})"


def _without_figures(scale: float, stages: int) -> Factors:
    """The least product that reaches `scale`, else the greatest."""
    if stages == 1:
        return ((0, next((f for f in ONE_STAGE_FACTORS if f >= scale), ONE_STAGE_FACTORS[-1])),)
    pair = next((pair for limit, pair in TWO_STAGE_FACTORS if scale <= limit), TWO_STAGE_FACTORS[-1][1])
    return tuple(enumerate(pair))


def _by_networks(scale: float, own: Sequence[int]) -> Factors:
    """The fewest stages, from the first, whose product reaches `scale`; else all."""
    runs = [tuple(enumerate(own[: count + 1])) for count in range(len(own))]
    return next((run for run in runs if product(run) >= scale), runs[-1])


def _why_networks(scale: float, chosen: Factors, own: Sequence[int]) -> str:
    if scale > product(chosen):
        return f"the most that the network's x{own[0]} comes to"
    return f"the network enlarges x{own[0]}" + (" each time" if len(chosen) > 1 else "")


def _asked(factors: object, stages: int, own: Sequence[int]) -> Factors:
    try:
        chosen = parse_factors(factors)
    except ValueError as error:
        hint = '"4x2", "4x-" for stage 1 alone, or "-x4" for stage 2 alone'
        raise UsageError(str(error), hint=hint) from None
    if chosen[-1][0] >= stages:
        raise BundleError(f"factors {factors!r} ask for stage 2, the bundle has {stages} stage", hint='"4x-"')
    wrong = [n for stage, n in chosen if own and n != own[stage]]
    if wrong:
        possible = [format_factors(tuple(enumerate(own[: count + 1]))) for count in range(len(own))]
        raise UsageError(
            f"factors {factors!r}: the bundle's network enlarges x{own[0]}, and not x{wrong[0]}",
            hint=" or ".join(f'"{text}"' for text in possible) + "; --scale resizes what it makes",
        )
    return chosen


def _reason(scale: float, chosen: Factors, why: str) -> str:
    shown, reached = format_factors(chosen), product(chosen)
    if scale == reached:
        return f"{shown}, {why}"
    then = "reduced" if scale < reached else "enlarged by interpolation"
    return f"{shown} = x{reached}, {why}, then {then} to x{scale:g}"


def _why(scale: float, chosen: Factors, stages: int) -> str:
    if scale > product(chosen):
        return "the most that is chosen automatically"
    return "the least that reaches the scale" + ("" if stages == 2 else " with the bundle's one stage")
