from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tudsr_runtime.tiling.resample import (
    RowBuffer,
    area_average,
    correlate,
    gaussian_kernel,
    resize,
    resize_stream,
    upsample,
    upsample_stream,
)

sides = st.integers(1, 40)
factors = st.sampled_from([1, 2, 3, 4, 8, 16])


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((3, height, width), dtype=np.float32) * 2 - 1


def in_bands(x: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """The rows of `x` in bands of random height."""
    rng = np.random.default_rng(seed)
    row = 0
    while row < x.shape[1]:
        rows = int(rng.integers(1, 20))
        yield x[:, row : row + rows]
        row += rows


def joined(bands: Iterator[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(bands), axis=1)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 1), (13, 10)])
def test_upsample_is_torch_interpolate(height: int, width: int, factor: int) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch, which is not installed")
    x = picture(height, width)
    # In float64, because in float32 torch rounds the positions of a factor such as 3.
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x)[None].double(), scale_factor=factor, mode="bilinear", align_corners=False
    )[0].numpy()
    assert np.abs(upsample(x, factor) - expected).max() <= 1e-6


@given(value=st.floats(-1, 1, width=32), height=sides, width=sides, factor=factors)
def test_upsample_keeps_constants_exactly(value: float, height: int, width: int, factor: int) -> None:
    x = np.full((3, height, width), value, np.float32)
    assert (upsample(x, factor) == np.float32(value)).all()


@settings(deadline=None)
@given(height=st.integers(1, 150), width=sides, factor=factors, seed=st.integers(0, 99))
def test_upsample_stream_is_upsample(height: int, width: int, factor: int, seed: int) -> None:
    x = picture(height, width, seed)
    assert (joined(upsample_stream(in_bands(x, seed), height, factor)) == upsample(x, factor)).all()


@given(height=sides, width=sides, factor=factors)
def test_area_average_is_the_mean_of_blocks(height: int, width: int, factor: int) -> None:
    x = picture(height * factor, width * factor)
    blocks = x.reshape(3, height, factor, width, factor).astype(np.float64)
    assert np.abs(area_average(x, factor) - blocks.mean(axis=(2, 4))).max() <= 1e-6


def test_area_average_undoes_upsample_of_a_plane_inside() -> None:
    x = np.broadcast_to(np.linspace(-1, 1, 20, dtype=np.float32), (3, 20, 20))
    assert np.abs(area_average(upsample(x, 8), 8) - x)[:, :, 1:-1].max() <= 1e-6


@settings(deadline=None)
@given(
    height=st.integers(1, 200),
    width=sides,
    to_height=st.integers(1, 300),
    to_width=sides,
    seed=st.integers(0, 99),
)
def test_resize_stream_is_resize(height: int, width: int, to_height: int, to_width: int, seed: int) -> None:
    x = picture(height, width, seed)
    streamed = joined(resize_stream(in_bands(x, seed), height, to_height, to_width))
    assert streamed.shape == (3, to_height, to_width)
    assert np.abs(streamed - resize(x, to_height, to_width)).max() <= 3e-5


@given(value=st.floats(-1, 1, width=32), size=st.integers(1, 60), to=st.integers(1, 60))
def test_resize_keeps_constants(value: float, size: int, to: int) -> None:
    resized = resize(np.full((3, size, size), value, np.float32), to, to)
    assert np.abs(resized - np.float32(value)).max() <= 1e-6


def test_resize_is_antialiased() -> None:
    stripes = np.tile(np.array([-1, 1], np.float32), 64)
    x = np.broadcast_to(stripes, (3, 128, 128))
    assert np.abs(resize(x, 32, 32)[:, 4:-4, 4:-4]).max() < 0.02


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 50])
def test_correlate_repeats_the_edge(axis: int, size: int) -> None:
    x, kernel = picture(size, size), gaussian_kernel(4)
    padded = np.pad(x, [(0, 0) if a != axis else (16, 16) for a in range(3)], mode="edge").astype(np.float64)
    expected = np.apply_along_axis(np.convolve, axis, padded, kernel, "valid")
    assert np.abs(correlate(x, kernel, axis) - expected).max() <= 1e-6


def test_gaussian_kernel_is_normalised_symmetric_and_reaches_four_sigma() -> None:
    kernel = gaussian_kernel(4)
    assert len(kernel) == 33
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert (kernel == kernel[::-1]).all()
    assert (kernel * np.arange(-16, 17) ** 2).sum() == pytest.approx(16, rel=0.01)


def test_row_buffer_pulls_only_what_is_asked_and_forgets() -> None:
    x = picture(40, 3)
    pulled = []

    def source() -> Iterator[np.ndarray]:
        for row in range(0, 40, 10):
            pulled.append(row)
            yield x[:, row : row + 10]

    buffer = RowBuffer(source())
    assert pulled == []
    assert (buffer.rows(5, 15) == x[:, 5:15]).all()
    assert pulled == [0, 10]
    buffer.drop(12)
    assert (buffer.rows(12, 40) == x[:, 12:]).all()
    assert pulled == [0, 10, 20, 30]
