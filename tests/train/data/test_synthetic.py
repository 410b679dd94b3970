"""Synthetic pictures: repeatable, natural, scale-invariant, whole."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import lab2rgb

from tudsr_train.data.dead_leaves import SyntheticImages, lab_to_srgb, texture


@pytest.fixture(scope="module")
def images() -> SyntheticImages:
    return SyntheticImages(size=128, seed=3, num_textures=16)


def test_a_picture_depends_on_its_seed_and_number_alone(images: SyntheticImages) -> None:
    again = SyntheticImages(size=128, seed=3, num_textures=16)
    last_first = again[5], again[0]
    assert np.array_equal(last_first[1], images[0])
    assert np.array_equal(last_first[0], images[5])
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], SyntheticImages(size=128, seed=4, num_textures=16)[0])


def test_pictures_look_like_photographs_to_a_statistician(images: SyntheticImages) -> None:
    pictures = np.stack([images[i] for i in range(24)])
    assert pictures.shape == (24, 128, 128, 3)
    assert pictures.dtype == np.float32
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    saturation = pictures.max(-1) - pictures.min(-1)
    assert np.median(saturation) < 0.35
    assert 0.25 < pictures.mean() < 0.7
    assert ((pictures > 0.02) & (pictures < 0.98)).mean() > 0.85
    spectrum = np.abs(np.fft.rfft2(pictures.mean(-1))).mean(0)
    frequency = np.arange(4, 40)
    slope = np.polyfit(np.log(frequency), np.log(spectrum[0, 4:40]), 1)[0]
    assert -1.8 < slope < -0.6  # amplitude falls about as 1 / f


def test_every_pixel_belongs_to_a_shape(images: SyntheticImages) -> None:
    flat = [np.mean(np.abs(np.diff(images[i].mean(-1), axis=1)) < 1e-6) for i in range(12)]
    assert max(flat) < 0.5  # shading and texture leave few neighbours exactly equal


def test_textures_are_normalised_and_periodic() -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        t = texture(rng, 64)
        assert abs(t.mean()) < 0.4
        assert 0.4 < t.std() < 1.2
        seam = np.abs(t[:, 0] - t[:, -1]).mean()
        inside = np.abs(np.diff(t, axis=1)).mean()
        assert seam < 2.5 * inside


def test_lab_colours_match_the_reference_library() -> None:
    lab = np.random.default_rng(0).uniform((20, -50, -60), (95, 50, 40), (500, 3))
    assert np.allclose(lab_to_srgb(lab), lab2rgb(lab[None])[0].clip(0, 1), atol=2e-3)
