from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tudsr_runtime.errors import BundleError, InputError, TudsrError, UsageError
from tudsr_runtime.factors import parse_factors, product
from tudsr_runtime.manifest import MeasuredPlan
from tudsr_runtime.tiling.plan import Plan, plan_upscale


@pytest.mark.parametrize(
    ("scale", "factors"),
    [(1, (2, 2)), (4, (2, 2)), (4.01, (4, 2)), (8, (4, 2)), (8.5, (8, 2)), (16, (8, 2)), (32, (8, 2))],
)
def test_two_stage_factors(scale: float, factors: tuple[int, ...]) -> None:
    assert plan_upscale(100, 80, scale).factors == factors


@pytest.mark.parametrize(("scale", "factor"), [(1, 2), (2, 2), (2.1, 4), (5, 8), (16, 16), (20, 16)])
def test_one_stage_factor(scale: float, factor: int) -> None:
    plan = plan_upscale(100, 80, scale, stages=1)
    assert plan.factors == (factor,)
    assert plan.stages[0].stage == 0


@pytest.mark.parametrize(
    ("width", "height", "scale", "tiles"),
    [
        (128, 128, 4, (1, 1)),
        (256, 256, 4, (1, 9)),
        (256, 256, 8, (9, 25)),
        (512, 512, 4, (9, 25)),
        (640, 480, 4, (9, 35)),
        (1, 1, 8, (1, 1)),
    ],
)
def test_tile_counts_are_pinned(width: int, height: int, scale: float, tiles: tuple[int, ...]) -> None:
    plan = plan_upscale(width, height, scale)
    assert tuple(stage.tiles for stage in plan.stages) == tiles
    assert plan.tiles == sum(tiles)


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    scale=st.floats(1, 32, allow_nan=False),
    stages=st.integers(1, 2),
)
def test_output_size_is_exact_and_reached_where_it_can_be(
    width: int, height: int, scale: float, stages: int
) -> None:
    plan = plan_upscale(width, height, scale, stages=stages)
    assert plan.output_width == math.floor(width * scale + 0.5) >= width
    assert plan.output_height == math.floor(height * scale + 0.5) >= height
    assert plan.product >= min(scale, 16)
    last = plan.stages[-1]
    assert (last.columns.length, last.rows.length) == (width * plan.product, height * plan.product)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [("4x2", ((0, 4), (1, 2))), ("4x-", ((0, 4),)), ("-x4", ((1, 4),)), ("1x8", ((0, 1), (1, 8)))],
)
def test_factors_as_asked(factors: str, expected: tuple[tuple[int, int], ...]) -> None:
    plan = plan_upscale(50, 40, None, factors)
    assert tuple((stage.stage, stage.factor) for stage in plan.stages) == expected
    assert plan.scale == plan.product
    assert (plan.output_width, plan.output_height) == (50 * plan.product, 40 * plan.product)
    assert plan_upscale(50, 40, 8, factors).output_width == 400


@pytest.mark.parametrize(
    "factors", ["", "x", "-x-", "4", "4x", "x2", "4x2x2", "0x2", "8x8", "-1x2", "4X2", "٤x٢", "1e1x2"]
)
def test_senseless_factors_are_refused(factors: str) -> None:
    with pytest.raises(UsageError, match="factors must be"):
        plan_upscale(50, 40, 8, factors)


@pytest.mark.parametrize("factors", ["4x2", "-x4"])
def test_stage_that_the_bundle_lacks_is_refused(factors: str) -> None:
    with pytest.raises(BundleError, match="the bundle has 1 stage"):
        plan_upscale(50, 40, 8, factors, stages=1)


@pytest.mark.parametrize("scale", [0.99, 0, -2, 32.01, math.inf, math.nan])
def test_scale_out_of_range_is_refused(scale: float | None) -> None:
    with pytest.raises(UsageError, match="scale must be 1 to 32"):
        plan_upscale(50, 40, scale)


@pytest.mark.parametrize(
    ("kwargs", "kind"),
    [
        ({"width": 0}, InputError),
        ({"height": -1}, InputError),
        ({"overlap": 16}, UsageError),
        ({"overlap": 257}, UsageError),
    ],
)
def test_other_impossible_requests(kwargs: dict[str, int], kind: type[TudsrError]) -> None:
    with pytest.raises(kind):
        plan_upscale(**{"width": 50, "height": 40, **kwargs})


@pytest.mark.parametrize(
    ("scale", "factors", "stages", "reason"),
    [
        (8, None, 2, "4x2, the least that reaches the scale"),
        (3, None, 2, "2x2 = x4, the least that reaches the scale, then reduced to x3"),
        (
            20,
            None,
            2,
            "8x2 = x16, the most that is chosen automatically, then enlarged by interpolation to x20",
        ),
        (4, None, 1, "4x-, the least that reaches the scale with the bundle's one stage"),
        (8, "-x4", 2, "-x4 = x4, as asked, then enlarged by interpolation to x8"),
    ],
)
def test_reason_says_what_happens(scale: float, factors: str | None, stages: int, reason: str) -> None:
    assert plan_upscale(50, 40, scale, factors, stages=stages).reason == reason


@given(
    width=st.integers(1, 3000), height=st.integers(1, 3000), across=st.floats(1, 32), down=st.floats(1, 32)
)
def test_a_size_is_met_by_the_least_factors(width: int, height: int, across: float, down: float) -> None:
    size = min(round(width * across), 32 * width), min(round(height * down), 32 * height)
    plan = plan_upscale(width, height, size=size)
    assert (plan.output_width, plan.output_height) == size
    assert plan.scale == max(size[0] / width, size[1] / height)
    assert plan.factors == plan_upscale(width, height, plan.scale).factors
    assert [stage.columns.length for stage in plan.stages] == [
        width * plan.factors[0],
        width * plan.factors[0] * plan.factors[1],
    ]


@pytest.mark.parametrize("size", [(99, 200), (100, 49), (3201, 1600), (0, 0)])
def test_a_size_out_of_reach_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=rf"100 x 50 px cannot become {size[0]} x {size[1]}"):
        plan_upscale(100, 50, size=size)


@pytest.mark.parametrize(
    ("width", "height", "scale", "tiles"),
    [
        (256, 256, 8, 34),
        (256, 256, 4, 10),
        (128, 128, 8, 10),
        (128, 128, 4, 2),
        (512, 512, 4, 34),
        (1, 1, 32, 2),
        (640, 480, 8, 165),
    ],
)
def test_tile_counts_are_the_least_without_seams(width: int, height: int, scale: float, tiles: int) -> None:
    assert plan_upscale(width, height, scale).tiles == tiles


@pytest.mark.parametrize(
    ("width", "height", "tiles"), [(16, 16, (64, 128)), (64, 64, (256, 512)), (128, 20, (512, 512))]
)
def test_each_stage_takes_the_smallest_tile_that_holds_its_canvas(
    width: int, height: int, tiles: tuple[int, ...]
) -> None:
    plan = plan_upscale(width, height, 8, tile=(512, 256, 128, 64))
    assert tuple(stage.columns.tile for stage in plan.stages) == tiles
    assert tuple(stage.rows.tile for stage in plan.stages) == tiles


def measured(scale: float, factors: str, psnr_db: float = 30) -> MeasuredPlan:
    return MeasuredPlan(scale, factors, psnr_db, 0.9, 1)


PLANS = (
    measured(2, "2x-", 31),
    measured(2, "1x2", 33),
    measured(4, "2x2", 29),
    measured(4, "4x-", 28),
    measured(8, "-x8"),
)


@pytest.mark.parametrize(
    ("scale", "factors"),
    [
        *[(1, "2x-"), (1.5, "2x-"), (2, "2x-"), (2.1, "4x-"), (3, "4x-"), (4, "4x-"), (6, "-x8"), (8, "-x8")],
        *[(8.1, "8x2"), (32, "8x2")],
    ],
)
def test_the_cheapest_that_the_bundle_is_good_for(scale: float, factors: str) -> None:
    assert plan_upscale(256, 256, scale, plans=PLANS).notation == factors
    assert plan_upscale(256, 256, scale, "4x2", plans=PLANS).notation == "4x2"
    assert plan_upscale(256, 256, scale).notation in {"2x2", "4x2", "8x2"}


def test_twice_as_large_in_one_tile() -> None:
    assert plan_upscale(256, 256, 2).tiles == 10
    assert plan_upscale(256, 256, 2, plans=PLANS).tiles == 1


def test_of_two_that_cost_the_same_the_better() -> None:
    equal = (measured(2, "2x-", 30), measured(2, "-x2", 31))
    for plans in (equal, equal[::-1]):
        assert plan_upscale(256, 256, 2, plans=plans).notation == "-x2"


def test_what_serves_a_larger_scale_is_not_taken_where_less_does() -> None:
    assert plan_upscale(256, 256, 3, plans=[measured(8, "4x2")]).notation == "2x2"
    assert plan_upscale(256, 256, 20, plans=[measured(32, "16x2")]).notation == "16x2"


def test_the_reason_gives_the_figures() -> None:
    assert plan_upscale(256, 256, 1.5, plans=PLANS).reason == (
        "2x- = x2, the cheapest that the bundle is good for up to x2 (measured: 31.00 dB, SSIM 0.900), "
        "then reduced to x1.5"
    )


FACTORS = ["2x-", "-x2", "3x-", "4x-", "-x4", "8x-", "-x16", "1x2", "2x1", "2x2", "3x2", "4x2", "2x8", "16x2"]


@st.composite
def measured_plans(draw: st.DrawFn) -> MeasuredPlan:
    factors = draw(st.sampled_from(FACTORS))
    scale = draw(st.floats(1, product(parse_factors(factors))))
    return measured(scale, factors, draw(st.floats(0, 100)))


@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    scale=st.floats(1, 32),
    plans=st.lists(measured_plans(), max_size=6),
    tiles=st.sampled_from([(512,), (512, 256), (512, 256, 128)]),
)
def test_the_scale_is_reached_and_nothing_costs_more_than_without_figures(
    width: int, height: int, scale: float, plans: list[MeasuredPlan], tiles: tuple[int, ...]
) -> None:
    plan = plan_upscale(width, height, scale, plans=plans, tile=tiles)
    without = plan_upscale(width, height, scale, tile=tiles)
    serving = [one for one in plans if one.scale >= scale]
    if serving or without.product >= scale:
        assert plan.product >= scale
    if without.product >= scale:
        assert tile_pixels(plan) <= tile_pixels(without)
    if not serving:
        assert plan == without
    for one in serving:
        if one.scale == min(other.scale for other in serving):
            named = plan_upscale(width, height, scale, one.factors, tile=tiles)
            assert tile_pixels(plan) <= tile_pixels(named)


def tile_pixels(plan: Plan) -> int:
    return sum(stage.tiles * stage.columns.tile**2 for stage in plan.stages)
