from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tudsr_runtime.transparency import fill_hidden, resize_alpha

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
    image = Image.fromarray((fill_hidden(rgb, alpha) * 255).round().astype(np.uint8))
    enlarged = np.asarray(image.resize((256, 256), Image.Resampling.BICUBIC))
    cover = resize_alpha(alpha, 256, 256)
    edge = (cover > 0) & (cover < 255)
    assert edge.any()
    assert np.abs(enlarged[edge].astype(int) - [255, 128, 0]).max() <= 1


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_constant_alpha_stays_constant(value: int) -> None:
    assert (resize_alpha(np.full((3, 5), value, np.uint8), 50, 31) == value).all()
    assert resize_alpha(np.full((3, 5), value, np.uint8), 50, 31).shape == (31, 50)
