from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tudsr_runtime.errors import UsageError
from tudsr_runtime.tiling.color import (
    DEFAULT_COLOR,
    ColorMethod,
    color_method,
    match_low_frequencies,
    match_statistics,
    match_wavelet,
)
from tudsr_runtime.tiling.resample import area_average, upsample


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((3, height, width), dtype=np.float32) * 2 - 1


def matched(
    y: np.ndarray, x: np.ndarray, factor: int, rows: int = 50, method: ColorMethod = match_low_frequencies
) -> np.ndarray:
    bands = (y[:, row : row + rows] for row in range(0, y.shape[1], rows))
    return np.concatenate(list(method(bands, x, factor)), axis=1)


def gaussian_matrix(size: int) -> np.ndarray:
    """G along one axis as a dense matrix: sigma 4, cut at 16, the edge pixel repeated."""
    matrix = np.zeros((size, size))
    weights = np.exp(-0.5 * (np.arange(-16, 17) / 4.0) ** 2)
    for row in range(size):
        for offset, weight in zip(range(-16, 17), weights / weights.sum(), strict=True):
            matrix[row, min(max(row + offset, 0), size - 1)] += weight
    return matrix


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 40),
    factor=st.sampled_from([1, 2, 4, 8]),
    rows=st.integers(1, 200),
)
def test_stream_is_the_formula(height: int, width: int, factor: int, rows: int) -> None:
    x, y = picture(height, width, 1), picture(height * factor, width * factor, 2)
    difference = (x - area_average(y, factor)).astype(np.float64)
    smooth = gaussian_matrix(height) @ difference @ gaussian_matrix(width).T
    expected = y + upsample(smooth.astype(np.float32), factor)
    assert np.abs(matched(y, x, factor, rows) - expected).max() <= 1e-5


def test_a_colour_cast_is_removed_and_detail_kept() -> None:
    x = np.full((3, 30, 40), 0.2, np.float32)
    detail = np.tile(np.array([-0.05, 0.05], np.float32), 160)
    cast = np.array([0.3, -0.2, 0.1], np.float32)[:, None, None]
    result = matched(x[0, 0, 0] + cast + np.broadcast_to(detail, (3, 240, 320)), x, 8)
    assert np.abs(result - (0.2 + detail)).max() <= 1e-5


def test_a_result_that_already_agrees_is_left_alone() -> None:
    y = picture(80, 64)
    assert np.abs(matched(y, area_average(y, 4), 4) - y).max() <= 1e-6


def smooth(x: np.ndarray) -> np.ndarray:
    """The low-pass of five a-trous levels, each over the whole picture."""
    for spacing in (1, 2, 4, 8, 16):
        for axis in (1, 2):
            edged = np.pad(x, [(spacing * (i == axis),) * 2 for i in range(3)], mode="edge")
            n = x.shape[axis]
            taps = [edged.take(range(at, at + n), axis) for at in (0, spacing, 2 * spacing)]
            x = taps[0] / 4 + taps[1] / 2 + taps[2] / 4
    return x


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 30),
    factor=st.sampled_from([1, 2, 4, 8]),
    rows=st.integers(1, 200),
)
def test_wavelet_keeps_the_detail_of_one_and_the_rest_of_the_other(
    height: int, width: int, factor: int, rows: int
) -> None:
    x, y = picture(height, width, 1), picture(height * factor, width * factor, 2)
    expected = (y - smooth(y)) + smooth(upsample(x, factor))
    assert np.abs(matched(y, x, factor, rows, match_wavelet) - expected).max() <= 1e-5


def test_adain_gives_the_input_its_statistics() -> None:
    x, y = picture(20, 30, 1) * 0.3 + 0.2, picture(80, 120, 2)
    result = matched(y, x, 4, 33, match_statistics)
    for statistic in (np.mean, np.std):
        assert np.abs(statistic(result, axis=(1, 2)) - statistic(x, axis=(1, 2))).max() <= 1e-5


@pytest.mark.parametrize("method", [match_statistics, match_wavelet, match_low_frequencies])
def test_a_constant_picture_stays_constant(method: ColorMethod) -> None:
    x = np.broadcast_to(np.array([-1, 0.3, 1], np.float32)[:, None, None], (3, 20, 30))
    y = np.broadcast_to(np.array([-0.9, 0.2, 0.8], np.float32)[:, None, None], (3, 160, 240))
    assert np.abs(matched(y, x, 8, 50, method) - x[:, :1, :1]).max() <= 1e-5


def test_names_are_checked() -> None:
    assert color_method(DEFAULT_COLOR) is match_low_frequencies
    with pytest.raises(UsageError, match="is called 'magic'; there are lowfreq, wavelet, adain, none"):
        color_method("magic")


def test_none_changes_nothing() -> None:
    y = picture(16, 16)
    assert next(color_method("none")(iter([y]), picture(2, 2), 8)) is y
