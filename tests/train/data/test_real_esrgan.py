"""Real-ESRGAN's degradation against the published formulas, written again here, on equal numbers."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import correlate
from scipy.special import j1

from tudsr_train.data import blur_kernels as kernels
from tudsr_train.data.degradation_real_esrgan import (
    SEESR_MILD,
    Draws,
    Noise,
    RealESRGAN,
    add_noise,
    degrade,
    draw,
    filter2d,
    low_quality,
)

Array = NDArray[np.float64]
SIZES = [7, 13, 21]
SEEDS = range(24)


def _published_grid(size: int) -> Array:
    """Offsets (size, size, 2) of BasicSR's `mesh_grid`, x first."""
    axis = np.arange(-size // 2 + 1.0, size // 2 + 1.0)
    return np.array([[(x, y) for x in axis] for y in axis])


def _published_q(size: int, sigma_x: float, sigma_y: float, theta: float) -> Array:
    d = np.array([[sigma_x**2, 0], [0, sigma_y**2]])
    u = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    inverse = np.linalg.inv(np.dot(u, np.dot(d, u.T)))
    grid = _published_grid(size)
    return np.array([[v @ inverse @ v for v in row] for row in grid])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(0.2, 0.2, 0.0), (1.3, 1.3, 0.0), (3.0, 0.4, 0.7), (0.9, 2.2, -2.5)])
def test_the_three_gaussian_families(size: int, shape: tuple[float, float, float]) -> None:
    q, S = _published_q(size, *shape), kernels.covariance(*shape)
    families = [(kernels.gaussian(size, S), np.exp(-0.5 * q))]
    for beta in (0.5, 1.0, 2.7):
        families.append((kernels.generalized_gaussian(size, S, beta), np.exp(-0.5 * np.power(q, beta))))
        families.append((kernels.plateau(size, S, beta), np.reciprocal(np.power(q, beta) + 1)))
    for actual, expected in families:
        np.testing.assert_allclose(actual, expected / expected.sum(), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cutoff", [math.pi / 5, 1.1, math.pi])
def test_the_sinc_filter(size: int, cutoff: float) -> None:
    middle = (size - 1) / 2
    expected = np.empty((size, size))
    for row, column in np.ndindex(size, size):
        r = math.hypot(row - middle, column - middle)
        expected[row, column] = (
            cutoff * j1(cutoff * r) / (2 * math.pi * r) if r else cutoff**2 / (4 * math.pi)
        )
    np.testing.assert_allclose(kernels.sinc(size, cutoff), expected / expected.sum(), atol=1e-7)


def _published_filter(x: Array, kernel: Array) -> Array:
    """Correlation with reflected edges, channel by channel."""
    return np.stack([correlate(channel, kernel, mode="mirror") for channel in x])


def _published_noise(x: Array, noise: Noise) -> Array:
    rng = np.random.default_rng(noise.seed)
    if noise.poisson:
        source = np.tensordot([0.2989, 0.587, 0.114], x, 1)[None] if noise.gray else x
        source = np.clip((source * 255).round(), 0, 255) / 255
        values = 2 ** np.ceil(np.log2(len(np.unique(source))))
        added = (rng.poisson(source * values) / values - source) * noise.strength
    else:
        shape = (1 if noise.gray else 3, *x.shape[1:])
        added = rng.standard_normal(shape, np.float32) * noise.strength / 255
    return np.clip(x + added, 0, 1)


def _published_jpeg(x: Array, quality: int) -> Array:
    pixels = (np.clip(x, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).transpose(2, 0, 1) / 255


def _published_resize(x: Array, mode: str, **how: object) -> Array:
    return F.interpolate(torch.from_numpy(x.astype(np.float32))[None], mode=mode, **how)[0].double().numpy()


def _published_order(x: Array, scale: int, d: Draws) -> Array:
    """`RealESRGANModel.feed_data` with its random numbers given."""
    height, width = x.shape[1:]
    x = _published_filter(x, d.kernel)
    x = _published_resize(x, d.mode, scale_factor=d.resize)
    x = _published_noise(x, d.noise)
    x = _published_jpeg(x, d.quality)
    if d.kernel2 is not None:
        x = _published_filter(x, d.kernel2)
    size = (int(height / scale * d.resize2), int(width / scale * d.resize2))
    x = _published_resize(x, d.mode2, size=size)
    x = _published_noise(x, d.noise2)
    pulse = np.ones((1, 1))
    sinc = pulse if d.sinc is None else d.sinc
    if d.jpeg_last:
        x = _published_resize(x, d.mode_final, size=(height // scale, width // scale))
        x = _published_filter(x, sinc)
        x = _published_jpeg(x, d.quality2)
    else:
        x = _published_jpeg(x, d.quality2)
        x = _published_resize(x, d.mode_final, size=(height // scale, width // scale))
        x = _published_filter(x, sinc)
    return x


@pytest.fixture(scope="module")
def photo() -> Array:
    """Smooth, with edges: (3, 96, 80) in [0, 1]."""
    coarse = np.random.default_rng(0).random((3, 12, 10))
    return np.clip(_published_resize(coarse, "bicubic", size=(96, 80)), 0, 1)


@pytest.mark.parametrize("scale", [4, 8])
def test_the_order_of_the_steps(photo: Array, scale: int) -> None:
    """On some processors a value between two levels rounds to the other one, which moves a block of a JPEG,
    or the number of levels, by which Poisson noise is scaled, past a power of two: two pictures may differ.
    """
    x, agree = torch.from_numpy(photo.astype(np.float32)), 0
    for seed in SEEDS:
        draws = draw(RealESRGAN(), scale, np.random.default_rng(seed))
        actual = degrade(x, scale, draws).double().numpy()
        difference = np.abs(actual - _published_order(photo, scale, draws)).mean()
        assert actual.shape == (3, 96 // scale, 80 // scale)
        assert difference < 10 / 255
        agree += difference < 0.1 / 255
    assert agree >= len(SEEDS) - 2


def test_both_orders_and_all_kinds_are_among_the_drawn_ones_more_often_than_twice() -> None:
    drawn = [draw(RealESRGAN(), 4, np.random.default_rng(seed)) for seed in SEEDS]
    for choice in (
        [d.jpeg_last for d in drawn],
        [d.noise.poisson for d in drawn],
        [d.noise2.poisson for d in drawn],
        [d.noise.gray for d in drawn],
        [d.kernel2 is None for d in drawn],
        [d.sinc is None for d in drawn],
    ):
        assert 2 < sum(choice) < len(SEEDS) - 2


@pytest.mark.parametrize("noise", [Noise(p, s, g, 5) for p, s in ((True, 1.5), (False, 20)) for g in (0, 1)])
def test_noise(photo: Array, noise: Noise) -> None:
    actual = add_noise(torch.from_numpy(photo.astype(np.float32)), noise).numpy()
    assert np.abs(actual - _published_noise(photo, noise)).mean() < 1e-5
    assert np.abs(actual - photo).mean() > 0.01


def test_filtering_equals_scipy_even_where_the_kernel_is_wider_than_the_picture(photo: Array) -> None:
    kernel = kernels.gaussian(21, kernels.covariance(3, 1, 0.4))
    for x in (photo, photo[:, :8, :6]):
        actual = filter2d(torch.from_numpy(x.astype(np.float32)), kernel).numpy()
        np.testing.assert_allclose(actual, _published_filter(x, kernel), atol=2e-6)


def _many(count: int, scale: int) -> list[Draws]:
    return [draw(RealESRGAN(), scale, np.random.default_rng([1, seed])) for seed in range(count)]


def test_numbers_are_drawn_as_published() -> None:
    drawn = _many(900, scale=4)

    def share(true: list[bool]) -> float:
        return float(np.mean(true))

    three_sigma = 3 * 0.5 / math.sqrt(len(drawn))
    assert share([d.resize < 1 for d in drawn]) == pytest.approx(0.7, abs=three_sigma)
    assert share([d.resize > 1 for d in drawn]) == pytest.approx(0.2, abs=three_sigma)
    assert share([d.resize2 == 1 for d in drawn]) == pytest.approx(0.3, abs=three_sigma)
    assert share([d.kernel2 is None for d in drawn]) == pytest.approx(0.2, abs=three_sigma)
    assert share([d.sinc is None for d in drawn]) == pytest.approx(0.2, abs=three_sigma)
    assert share([d.noise.poisson for d in drawn]) == pytest.approx(0.5, abs=three_sigma)
    assert share([d.noise2.gray for d in drawn]) == pytest.approx(0.4, abs=three_sigma)
    assert share([d.jpeg_last for d in drawn]) == pytest.approx(0.5, abs=three_sigma)
    # only a sinc filter has negative lobes
    assert share([d.kernel.min() < 0 for d in drawn]) == pytest.approx(0.1, abs=three_sigma)
    assert {len(d.kernel) for d in drawn} == set(range(7, 22, 2))
    assert {d.mode for d in drawn} == {d.mode_back for d in drawn} == {"area", "bilinear", "bicubic"}
    assert (min(d.quality for d in drawn), max(d.quality for d in drawn)) == (30, 95)
    assert min(d.resize for d in drawn) == pytest.approx(0.15, abs=0.02)
    assert max(d.resize2 for d in drawn) == pytest.approx(1.2, abs=0.02)
    strengths = [d.noise.strength for d in drawn if not d.noise.poisson]
    assert 1 <= min(strengths) < 2
    assert 29 < max(strengths) <= 30


def test_stage_2_has_larger_kernels() -> None:
    assert {len(d.kernel) for d in _many(100, scale=8)} == set(range(11, 42, 2))


def test_the_mild_preset_differs_where_it_was_published_to() -> None:
    published = {
        "resize_range": (0.3, 1.5), "noise_range": (1, 15), "poisson_scale_range": (0.05, 2),
        "jpeg_range": (60, 95), "second_blur_prob": 0.5, "resize_range2": (0.6, 1.2), "noise_range2": (1, 12),
        "poisson_scale_range2": (0.05, 1), "jpeg_range2": (60, 100),
    }  # fmt: skip
    mild, strong = asdict(SEESR_MILD), asdict(RealESRGAN())
    assert {k: v for k, v in mild.items() if v != strong[k] and k != "preset"} == published


@pytest.mark.usefixtures("one_thread")
def test_the_input_of_the_generator_is_on_8_bit_levels_and_follows_the_generator(photo: Array) -> None:
    x_H = torch.from_numpy(photo.astype(np.float32))[:, :80]
    first = low_quality(x_H, 4, 40, RealESRGAN(), np.random.default_rng(7))
    assert first.shape == (3, 40, 40)
    assert torch.allclose(first * 255, (first * 255).round(), atol=1e-4)
    assert torch.equal(first, low_quality(x_H, 4, 40, RealESRGAN(), np.random.default_rng(7)))
    assert not torch.equal(first, low_quality(x_H, 4, 40, RealESRGAN(), np.random.default_rng(8)))


def test_a_constant_picture_stays_itself_where_nothing_is_added() -> None:
    x_H = torch.full((3, 64, 64), 128 / 255)
    for seed in range(6):
        draws = draw(RealESRGAN(), 4, np.random.default_rng(seed))
        silent = Noise(False, 0.0, False, 0)
        low = degrade(x_H, 4, replace(draws, noise=silent, noise2=silent, quality=95, quality2=95))
        assert (low - 128 / 255).abs().max() <= 1.01 / 255
