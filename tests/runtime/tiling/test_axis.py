from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tudsr_runtime.tiling.axis import DEAD_MARGIN, Axis, padding_index, plan_axis, raised_cosine

lengths = st.integers(1, 20_000)
overlaps = st.integers(17, 256)
small_tiles = st.integers(34, 200)


def total_weights(axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the tiles' weights and number of tiles with weight, per canvas pixel."""
    total, count = np.zeros(axis.length, np.float32), np.zeros(axis.length, int)
    for i in range(len(axis.starts)):
        begin, end = axis.span(i)
        total[begin:end] += axis.weights(i)
        count[begin:end] += 1
    return total, count


@given(length=lengths, overlap=overlaps)
def test_tiles_cover_the_canvas_with_the_overlap_and_no_tile_too_many(length: int, overlap: int) -> None:
    axis = plan_axis(length, 512, overlap)
    assert axis.starts[0] == 0
    assert axis.starts[-1] + 512 == axis.padded == max(length, 512)
    strides = np.diff(axis.starts)
    assert (512 - strides >= overlap).all()
    assert (strides > 0).all()
    assert np.ptp(strides) <= 1 if len(strides) else True
    n = len(axis.starts)
    assert n == 1 or (n - 1) * 512 - (n - 2) * overlap < length


@settings(deadline=None)
@given(length=lengths, overlap=overlaps)
def test_weights_of_at_most_two_neighbours_sum_to_one(length: int, overlap: int) -> None:
    total, count = total_weights(plan_axis(length, 512, overlap))
    assert np.abs(total - 1).max() <= 1e-6
    assert count.max() <= 2


@settings(deadline=None)
@given(tile=small_tiles, length=st.integers(1, 3000), data=st.data())
def test_the_same_holds_for_any_tile(tile: int, length: int, data: st.DataObject) -> None:
    axis = plan_axis(length, tile, data.draw(st.integers(17, tile // 2)))
    total, count = total_weights(axis)
    assert np.abs(total - 1).max() <= 1e-6
    assert count.max() <= 2


@given(length=st.integers(513, 20_000), overlap=overlaps)
def test_edges_shared_with_a_neighbour_have_no_weight(length: int, overlap: int) -> None:
    axis = plan_axis(length, 512, overlap)
    for i, start in enumerate(axis.starts):
        begin, end = axis.span(i)
        assert begin - start >= DEAD_MARGIN or i == 0
        assert start + 512 - end >= DEAD_MARGIN or i + 1 == len(axis.starts)


@pytest.mark.parametrize("length", range(513, 4200, 97))
def test_default_ramp_is_112_px(length: int) -> None:
    assert plan_axis(length).ramp == 112


@given(length=lengths)
def test_finished_rows_are_final(length: int) -> None:
    axis = plan_axis(length)
    for i in range(len(axis.starts) - 1):
        assert axis.finished(i) == axis.span(i + 1)[0]
    assert axis.finished(len(axis.starts) - 1) == length


@pytest.mark.parametrize(
    ("length", "starts"),
    [(1, (0,)), (512, (0,)), (513, (0, 1)), (1024, (0, 256, 512)), (2048, (0, 384, 768, 1152, 1536))],
)
def test_known_starts(length: int, starts: tuple[int, ...]) -> None:
    assert plan_axis(length).starts == starts


@pytest.mark.parametrize(("length", "overlap"), [(0, 128), (-3, 128), (600, 16), (600, 257)])
def test_impossible_axis_is_refused(length: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        plan_axis(length, 512, overlap)


@given(width=st.integers(1, 512))
def test_ramp_rises_and_is_its_own_complement(width: int) -> None:
    ramp = raised_cosine(width)
    assert (np.diff(ramp) > 0).all()
    assert np.abs(ramp + ramp[::-1] - 1).max() <= 1e-6


@given(length=st.integers(1, 600), padded=st.integers(1, 600))
def test_padding_reflects_then_replicates(length: int, padded: int) -> None:
    assume(padded >= length)
    index = padding_index(length, padded)
    reflected = min(padded, 2 * length - 1)
    line = np.arange(length)
    expected = np.pad(line, (0, reflected - length), mode="reflect") if length > 1 else line
    expected = np.pad(expected, (0, padded - reflected), mode="edge")
    assert (index == expected).all()
    assert math.prod(index.shape) == padded
