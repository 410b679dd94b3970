from __future__ import annotations

import numpy as np
import pytest

from tudsr_runtime.planes import PlanarView, to_levels, white


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_level_goes_to_the_model_and_back(dtype: type) -> None:
    top = white(np.dtype(dtype))
    levels = np.arange(top + 1, dtype=dtype).reshape(16, -1)
    view = PlanarView(levels)
    assert view.shape == (3, *levels.shape)
    planes = np.concatenate([view[:, row : row + 5] for row in range(0, 16, 5)], axis=1)
    assert planes.dtype == np.float32
    assert (planes.min(), planes.max()) == (-1, 1)
    assert np.array_equal(to_levels((planes[0] + 1) / 2, levels.dtype), levels)


def test_planes_are_the_channels_in_order() -> None:
    levels = np.random.default_rng(0).random((5, 7, 3), dtype=np.float32)
    assert np.abs(PlanarView(levels)[:, 1:4] - (levels[1:4].transpose(2, 0, 1) * 2 - 1)).max() <= 1e-6


def test_levels_are_rounded_and_clipped() -> None:
    values = np.array([-0.1, 0.4 / 255, 0.6 / 255, 254.4 / 255, 254.6 / 255, 1.1], np.float32)
    assert to_levels(values, np.dtype(np.uint8)).tolist() == [0, 0, 1, 254, 255, 255]
    assert to_levels(values, np.dtype(np.float32)).tolist() == [0, *values[1:5].tolist(), 1]
