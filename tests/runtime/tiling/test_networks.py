"""Stages whose graph enlarges by itself: tiles are cut from what it reads and blended as what it writes."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.tiling.test_stages import picture
from tudsr_runtime.errors import BundleError, NotFiniteError, UsageError
from tudsr_runtime.manifest import MeasuredPlan
from tudsr_runtime.planes import FloatArray
from tudsr_runtime.tiling.axis import plan_axis
from tudsr_runtime.tiling.plan import Plan, plan_upscale
from tudsr_runtime.tiling.resample import resize
from tudsr_runtime.tiling.stages import run_stages

TILE, OVERLAP = 96, 24
factors = st.integers(1, 4)
sides = st.integers(1, 70)
unhurried = settings(deadline=None)


def repeated(factor: int, x: FloatArray) -> FloatArray:
    return x.repeat(factor, axis=-2).repeat(factor, axis=-1)


def smoothed(factor: int, x: FloatArray) -> FloatArray:
    """A network of receptive field 1: the mean with the neighbours, zero beyond the edge, repeated."""
    wide = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (1, 1)])
    height, width = x.shape[-2:]
    parts = [wide[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return repeated(factor, np.mean(parts, axis=0, dtype=np.float32))


def planned(x: FloatArray, factor: int, passes: int = 1) -> Plan:
    own = (factor,) * passes
    return plan_upscale(
        x.shape[2], x.shape[1], factor**passes, tile=TILE, overlap=OVERLAP, own=own, stages=passes
    )


@unhurried
@given(height=sides, width=sides, factor=factors, turned=st.booleans())
def test_tiles_of_a_network_are_its_picture(height: int, width: int, factor: int, turned: bool) -> None:
    x = picture(height, width)
    plan = planned(x, factor)
    order, given = (plan.turned, x.swapaxes(1, 2)) if turned else (plan, x)
    rows = list(run_stages(given, order.stages, [partial(repeated, factor)], turned=turned))
    result = np.concatenate(rows, axis=1)
    assert np.abs((result.swapaxes(1, 2) if turned else result) - repeated(factor, x)).max() <= 1e-6


@unhurried
@given(height=st.integers(24, 70), width=st.integers(24, 70))
def test_a_network_that_sees_less_than_the_dead_margin_shows_no_seam(height: int, width: int) -> None:
    """Of the tile's own edge, where it sees a border that is not there, nothing is used."""
    x = picture(height, width)
    result = np.concatenate(
        list(run_stages(x, planned(x, 4).stages, [partial(smoothed, 4)], sanity=False)), 1
    )
    assert np.abs(result - smoothed(4, x)).max() <= 1e-6


@unhurried
@given(height=st.integers(1, 20), width=st.integers(1, 20))
def test_a_network_runs_twice(height: int, width: int) -> None:
    x = picture(height, width)
    run = partial(repeated, 2)
    result = np.concatenate(list(run_stages(x, planned(x, 2, 2).stages, [run, run])), axis=1)
    assert np.abs(result - repeated(4, x)).max() <= 1e-6


@unhurried
@given(height=sides, width=sides, strength=st.sampled_from([0.0, 0.4, 1.0]))
def test_strength_runs_from_lanczos_to_the_network(height: int, width: int, strength: float) -> None:
    x = picture(height, width)
    lanczos, network = resize(x, 2 * height, 2 * width), repeated(2, x)
    rows = run_stages(x, planned(x, 2).stages, [partial(repeated, 2)], strength=[strength])
    expected = np.clip(lanczos + strength * (network - lanczos), -1, 1)
    assert np.abs(np.concatenate(list(rows), axis=1) - expected).max() <= 1e-5


def test_a_network_that_makes_another_picture_is_found_out() -> None:
    x = np.linspace(-1, 1, 3 * 24 * 24, dtype=np.float32).reshape(3, 24, 24)
    for wrong in (lambda tile: -repeated(4, tile), lambda tile: repeated(4, tile) * np.float32(np.nan)):
        with pytest.raises(NotFiniteError, match="stage 1, tile row 1"):
            list(run_stages(x, planned(x, 4).stages, [wrong]))


@given(
    length=st.integers(1, 600), step=st.integers(1, 8), tile=st.integers(4, 20), overlap=st.integers(17, 60)
)
def test_tiles_start_on_whole_input_pixels(length: int, step: int, tile: int, overlap: int) -> None:
    length, tile = length * step, 2 * step * tile
    if overlap > tile // 2:
        with pytest.raises(ValueError, match="overlap must be 17"):
            plan_axis(length, tile, overlap, step)
        return
    axis = plan_axis(length, tile, overlap, step)
    assert all(start % step == 0 for start in axis.starts)
    assert axis.starts[-1] == max(0, length - tile)
    assert all(left + tile - right >= overlap for left, right in pairwise(axis.starts))
    total = np.zeros(length)
    for index in range(len(axis.starts)):
        begin, end = axis.span(index)
        total[begin:end] += axis.weights(index)
    assert np.abs(total - 1).max() < 1e-6


@pytest.mark.parametrize(
    ("scale", "own", "notation", "reason"),
    [
        (None, (4, 4), "4x-", "4x-, the network enlarges x4"),
        (2, (4, 4), "4x-", "4x- = x4, the network enlarges x4, then reduced to x2"),
        (8, (4, 4), "4x4", "4x4 = x16, the network enlarges x4 each time, then reduced to x8"),
        (8, (2, 2), "2x2", "2x2 = x4, the most that the network's x2 comes to, then enlarged by"),
        (8, (8,), "8x-", "8x-, the network enlarges x8"),
        (3, (1,), "1x-", "1x- = x1, the most that the network's x1 comes to, then enlarged by interpolation"),
    ],
)
def test_how_a_scale_is_made(scale: float | None, own: tuple[int, ...], notation: str, reason: str) -> None:
    plan = plan_upscale(100, 80, scale, stages=len(own), own=own)
    assert plan.notation == notation
    assert plan.reason.startswith(reason)
    assert plan.output_width == 100 * (scale or own[0])


def test_factors_are_the_networks_own() -> None:
    assert plan_upscale(100, 80, 8, "4x-", own=(4, 4)).reason.endswith("then enlarged by interpolation to x8")
    with pytest.raises(UsageError, match="enlarges x4, and not x2") as caught:
        plan_upscale(100, 80, None, "4x2", own=(4, 4))
    assert caught.value.hint == '"4x-" or "4x4"; --scale resizes what it makes'
    with pytest.raises(BundleError, match="has 1 stage"):
        plan_upscale(100, 80, None, "4x4", own=(4,), stages=1)


def test_measured_plans_come_before_the_rule() -> None:
    once = MeasuredPlan(4, "4x-", 30, 0.9, 1)
    twice = MeasuredPlan(8, "4x4", 25, 0.8, 1)
    plan = plan_upscale(100, 80, 8, own=(4, 4), plans=(once, twice))
    assert plan.reason.startswith("4x4 = x16, the cheapest")
