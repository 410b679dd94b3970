from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tudsr_runtime.pictures.transparency import AlphaRows, fill_hidden

sides = st.integers(1, 17)


@given(height=sides, width=sides, seed=st.integers(0, 2**32 - 1), density=st.floats(0, 1))
def test_hidden_pixels_take_colours_from_the_range_of_visible_ones(
    height: int, width: int, seed: int, density: float
) -> None:
    rng = np.random.default_rng(seed)
    alpha = np.where(rng.random((height, width)) < density, rng.integers(1, 256, (height, width)), 0)
    rgb = rng.uniform(0.25, 0.75, (height, width, 3)).astype(np.float32)
    hidden = alpha == 0
    poisoned = np.where(hidden[..., None], np.float32(0), rgb)
    filled = fill_hidden(poisoned, alpha.astype(np.uint8))
    assert filled.dtype == np.float32
    assert np.array_equal(filled[~hidden], rgb[~hidden])
    if hidden.any() and not hidden.all():
        assert filled.min() >= rgb[~hidden].min() - 1e-6
        assert filled.max() <= rgb[~hidden].max() + 1e-6


def test_a_cut_out_gets_no_dark_fringe() -> None:
    y, x = np.mgrid[:32, :32]
    alpha = np.where((x - 16) ** 2 + (y - 16) ** 2 < 100, 255, 0).astype(np.uint8)
    rgb = np.where(alpha[..., None] > 0, np.float32([1, 0.5, 0]), np.float32(0)).astype(np.float32)
    levels = (rgb * 255).round().astype(np.uint8)
    image = Image.fromarray(fill_hidden(levels, alpha))
    enlarged = np.asarray(image.resize((256, 256), Image.Resampling.BICUBIC))
    cover = AlphaRows(alpha, 256, 256, alpha.dtype).rows(0, 256)
    edge = (cover > 0) & (cover < 255)
    assert edge.any()
    assert np.abs(enlarged[edge].astype(int) - [255, 128, 0]).max() <= 1


def test_grey_is_filled_like_colour() -> None:
    grey, alpha = np.array([[10, 99]], np.uint16), np.array([[65535, 0]], np.uint16)
    assert fill_hidden(grey, alpha).tolist() == [[10, 10]]


@given(height=sides, width=sides, factor=st.floats(1, 9), step=st.integers(1, 40))
def test_alpha_is_the_same_in_bands_and_at_once(height: int, width: int, factor: float, step: int) -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    size = round(width * factor), round(height * factor)
    whole = Image.fromarray(alpha.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    expected = np.asarray(whole).clip(0, 255)
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        rows = AlphaRows((alpha * np.uint16(top // 255)).astype(dtype), *size, np.dtype(dtype))
        bands = [rows.rows(begin, min(begin + step, size[1])) for begin in range(0, size[1], step)]
        result = np.concatenate(bands)
        assert result.dtype == dtype
        assert np.abs(result / (top / 255) - expected).max() <= 0.51


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_constant_alpha_stays_constant(value: int, dtype: type) -> None:
    result = AlphaRows(np.full((3, 5), value, np.uint8), 50, 31, np.dtype(dtype)).rows(0, 31)
    assert result.shape == (31, 50)
    assert (result == value * (257 if dtype == np.uint16 else 1)).all()
