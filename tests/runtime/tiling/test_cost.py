from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tudsr_runtime.manifest import MeasuredPlan
from tudsr_runtime.tiling.axis import plan_axis
from tudsr_runtime.tiling.cost import SAVING_WORTH_A_SEAM, TileCosts, cuts
from tudsr_runtime.tiling.plan import plan_upscale

SIZES = (576, 512, 256)
PIXELS = TileCosts({(stage, size): float(size * size) for stage in (0, 1) for size in SIZES})


@given(
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    overlap=st.integers(17, 256),
    each=st.tuples(*[st.floats(0.01, 100) for _ in SIZES]),
)
def test_no_way_is_cheaper_by_more_than_a_seam_is_worth(
    width: int, height: int, overlap: int, each: tuple[float, ...]
) -> None:
    costs = TileCosts({(0, size): cost for size, cost in zip(SIZES, each, strict=True)})
    best, *others = cuts(width, height, 0, SIZES, overlap, costs)
    for cut in (best, *others):
        assert cut.cost == pytest.approx(costs.per_tile[0, cut.tile] * cut.tiles)
        assert cut.cost >= (best.cost or 0) / (1 + SAVING_WORTH_A_SEAM)
        assert cut.tiles >= best.tiles or cut.cost > (best.cost or 0)
        for axis in (cut.columns, cut.rows):
            shared = [a + axis.tile - b for a, b in itertools.pairwise(axis.starts)]
            assert min(shared, default=overlap) >= overlap
    assert {cut.tile for cut in (best, *others)} >= {size for size in SIZES if overlap <= size // 2}


def test_four_seams_for_three_per_cent_are_not_worth_it() -> None:
    area = TileCosts({(0, 256): 0.536, (0, 512): 2.217, (0, 576): 2.838})
    best, *_ = cuts(300, 300, 0, SIZES, 80, area)
    assert (best.tile, best.tiles) == (512, 1)


def test_without_costs_the_smallest_that_holds_the_canvas_else_the_greatest() -> None:
    assert [cut.tile for cut in cuts(100, 250, 0, SIZES, 128, None)] == [256]
    assert [cut.tile for cut in cuts(100, 600, 0, SIZES, 128, None)] == [576]


@given(length=st.integers(1, 4000), overlap=st.integers(17, 256))
def test_one_size_alone_is_cut_as_without_costs(length: int, overlap: int) -> None:
    (cut,) = cuts(length, 100, 0, (512,), overlap, TileCosts({(0, 512): 1}))
    assert cut.columns == plan_axis(length, 512, overlap)


def test_factors_are_chosen_by_cost_where_it_is_known() -> None:
    plans = [MeasuredPlan(4, "4x-", 30, 0.9, 1), MeasuredPlan(4, "-x4", 30, 0.9, 1)]
    for dear, factors in ((0, "-x4"), (1, "4x-")):
        costs = TileCosts({(dear, 512): 1000, (1 - dear, 512): 1})
        assert plan_upscale(128, 128, 4, plans=plans, costs=costs).notation == factors


def test_the_plan_adds_up_what_its_stages_take() -> None:
    plan = plan_upscale(128, 128, 8, tile=SIZES, overlap=80, costs=PIXELS)
    assert plan.cost == sum(stage.tiles * stage.columns.tile**2 for stage in plan.stages)
    assert plan_upscale(128, 128, 8).cost is None
