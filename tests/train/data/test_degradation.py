"""The degradation: repeatable, of the right size, and each step against a reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from tudsr_runtime.errors import TrainingError
from tudsr_train.data.degradation_nano import Degradation, blur, degrade
from tudsr_train.data.degradation_real_esrgan import RealESRGAN
from tudsr_train.data.pairs import Softness

CLEAN = Degradation(blur_sigma=(0.0, 0.0), shift_prob=0.0, sharpen_prob=0.0, noise_prob=0.0, jpeg_prob=0.0)


@pytest.mark.parametrize("sigma", [1.0, 1.3, 3.0])
def test_an_isotropic_blur_equals_the_reference(sigma: float) -> None:
    # the reference samples its kernel, so that the two agree only on pictures without the finest detail
    x = torch.from_numpy(
        gaussian_filter(np.random.default_rng(0).random((3, 48, 64), np.float32), (0, 1.5, 1.5))
    )
    expected = gaussian_filter(x.numpy(), (0, sigma, sigma), mode="mirror", truncate=6)
    spread = float((x - torch.from_numpy(expected)).abs().max())
    difference = np.abs(blur(x, np.eye(2) * sigma**2).numpy() - expected)
    assert difference.max() < 0.05 * spread


def test_a_turned_blur_smears_along_its_long_axis() -> None:
    x = torch.zeros(1, 65, 65)
    x[0, 32, 32] = 1
    y = blur(x, np.array([[9.0, 0.0], [0.0, 1.0]]))[0]
    assert y[32, 38] > 5 * y[38, 32].abs()
    assert float(y.sum()) == pytest.approx(1, abs=1e-3)


def test_a_shift_moves_the_picture_by_that_much() -> None:
    x = torch.zeros(1, 33, 33)
    x[0, 16, 16] = 1
    assert torch.allclose(blur(x, np.zeros((2, 2)), (3.0, -2.0)), x.roll((-2, 3), (1, 2)), atol=1e-5)
    y = blur(x, np.eye(2), (0.5, 0.0))[0]
    assert torch.allclose(y[16, 16], y[16, 17], atol=1e-5)


def test_sharpening_overshoots_at_an_edge() -> None:
    x = torch.full((3, 32, 32), 0.3)
    x[..., 16:] = 0.7
    sharp = replace(CLEAN, sharpen_prob=1.0, sharpen_amount=(1.0, 1.0))
    low = degrade(x, 1, sharp, np.random.default_rng(0))
    assert low.min() < 0.28
    assert low.max() > 0.72
    assert (low.mean() - 0.5).abs() < 0.01


@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([1, 2, 4, 8]), level=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_a_constant_stays_itself_without_noise(scale: int, level: float, seed: int) -> None:
    x = torch.full((3, 32, 32), level)
    settings_without_noise = Degradation(noise_prob=0.0, jpeg_prob=0.0)
    low = degrade(x, scale, settings_without_noise, np.random.default_rng(seed))
    assert low.shape == (3, 32 // scale, 32 // scale)
    assert (low - level).abs().max() <= 0.5 / 255 + 1e-4


def test_nothing_is_lost_where_every_step_is_off() -> None:
    x = torch.randint(0, 256, (3, 16, 16)).float() / 255
    for seed in range(8):
        assert torch.allclose(degrade(x, 1, CLEAN, np.random.default_rng(seed)), x, atol=1e-6)


@pytest.mark.usefixtures("one_thread")
def test_the_same_generator_gives_the_same_picture_and_levels_are_8_bit() -> None:
    x = torch.rand(3, 64, 64)
    first = degrade(x, 4, Degradation(), np.random.default_rng(7))
    assert torch.equal(first, degrade(x, 4, Degradation(), np.random.default_rng(7)))
    assert not torch.equal(first, degrade(x, 4, Degradation(), np.random.default_rng(8)))
    assert torch.allclose(first * 255, (first * 255).round(), atol=1e-4)


def test_noise_has_the_asked_for_spread() -> None:
    noisy = Degradation(
        blur_sigma=(0.0, 0.0), noise_sigma=(0.1, 0.1), noise_prob=1.0, jpeg_prob=0.0, gray_noise_prob=0.0
    )
    x = torch.full((3, 128, 128), 0.5)
    for seed in range(4):
        low = degrade(x, 1, noisy, np.random.default_rng(seed))
        assert float(low.std()) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Degradation(blur_sigma=(3.0, 1.0)), r"blur_sigma goes from low to high, not \[3.0, 1.0\]"),
        (lambda: Degradation(jpeg_prob=7), "jpeg_prob must be from 0 to 1, not 7"),
        (lambda: Degradation(jpeg_quality=(45, 980)), "jpeg_quality must be from 1 to 100"),
        (lambda: Degradation(noise_sigma=(-1.0, 1.0)), "noise_sigma must be at least 0"),
        (lambda: Degradation(shift=math.inf), "shift must be at least 0, not inf"),
        (lambda: RealESRGAN(resize_range2=(2.0, 1.0)), "degradation: resize_range2 goes from low to high"),
        (lambda: RealESRGAN(resize_prob=(0.0, 0.0, 0.0)), "resize_prob must have a weight above 0"),
        (lambda: Softness(sigma=(2.0, 1.0)), "softness: sigma goes from low to high"),
        (lambda: Softness(full_at=0), "softness: full_at must be at least 1, not 0"),
    ],
)
def test_what_nothing_can_be_drawn_from_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        make()
