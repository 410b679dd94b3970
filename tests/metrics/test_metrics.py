"""Each metric against another program's, or against what must hold whatever the picture."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import convolve
from scipy.special import gamma
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tudsr_runtime.errors import InputError
from tudsr_runtime.metrics import niqe as niqe_module
from tudsr_runtime.metrics.consistency import colour_error, consistency
from tudsr_runtime.metrics.fidelity import psnr_y, ssim, ssim_y
from tudsr_runtime.metrics.gmsd import gmsd_y
from tudsr_runtime.metrics.niqe import niqe
from tudsr_runtime.metrics.pixels import rgb, studio_luma
from tudsr_runtime.metrics.resize import imresize
from tudsr_runtime.metrics.texture import grid_energy, seam_energy, texture_kept

Levels = NDArray[np.uint8]
AGAINST_REFERENCE: dict[str, Callable[[Levels, Levels], float]] = {
    "psnr": psnr_y,
    "ssim": ssim_y,
    "gmsd": gmsd_y,
    "texture": texture_kept,
}
SYMMETRIC = ("psnr", "ssim", "gmsd")

pictures = arrays(np.uint8, st.tuples(st.integers(12, 40), st.integers(12, 40), st.just(3)))
two_pictures = st.tuples(st.integers(12, 40), st.integers(12, 40)).flatmap(
    lambda size: st.tuples(*[arrays(np.uint8, (*size, 3))] * 2)
)


def photo(side: int = 288) -> Levels:
    return np.ascontiguousarray(data.astronaut()[:side, :side])


def noisy(picture: Levels, sigma: float = 8.0) -> Levels:
    noise = np.random.default_rng(0).normal(0, sigma, picture.shape)
    return (picture + noise).round().clip(0, 255).astype(np.uint8)


@given(pictures)
def test_equal_pictures(picture: Levels) -> None:
    assert psnr_y(picture, picture) == math.inf
    assert ssim_y(picture, picture) == pytest.approx(1)
    assert gmsd_y(picture, picture) == pytest.approx(0, abs=1e-12)
    assert texture_kept(picture, picture) == 1
    assert consistency(picture, picture) == math.inf
    assert colour_error(picture, picture) == 0


@given(two_pictures)
def test_symmetry_where_it_holds(both: tuple[Levels, Levels]) -> None:
    x, y = both
    for name in SYMMETRIC:
        metric = AGAINST_REFERENCE[name]
        assert metric(x, y) == pytest.approx(metric(y, x), rel=1e-9), name


@given(two_pictures)
def test_sixteen_bits_and_floats_say_what_eight_say(both: tuple[Levels, Levels]) -> None:
    deep = [x.astype(np.uint16) * 257 for x in both]
    floats = [x / 255 for x in both]
    for name, metric in AGAINST_REFERENCE.items():
        expected = metric(*both)
        assert metric(*deep) == pytest.approx(expected, rel=1e-6, abs=1e-6), name
        assert metric(*floats) == pytest.approx(expected, rel=1e-6, abs=1e-6), name


@given(arrays(np.uint8, (16, 20)), arrays(np.uint8, (16, 20)))
def test_grey_counts_as_three_equal_channels(x: Levels, y: Levels) -> None:
    three = [np.stack([channel] * 3, -1) for channel in (x, y)]
    for name, metric in AGAINST_REFERENCE.items():
        expected = pytest.approx(metric(*three), rel=1e-9, abs=1e-9)
        assert metric(x, y) == expected, name
        assert metric(x[..., None], y[..., None]) == expected, name


@given(pictures, st.integers(0, 255))
def test_alpha_lies_over_white(picture: Levels, level: int) -> None:
    alpha = np.full((*picture.shape[:2], 1), level, np.uint8)
    shown = rgb(np.concatenate([picture, alpha], -1))
    assert np.allclose(shown, 1 - (1 - picture / 255) * (level / 255))
    grey = rgb(np.concatenate([picture[..., :1], alpha], -1))
    assert np.allclose(grey, 1 - (1 - picture[..., :1] / 255) * (level / 255))


@pytest.mark.parametrize("shape", [(3,), (4, 4, 5), (4, 4, 3, 1), (0, 4, 3)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="no picture"):
        rgb(np.zeros(shape, np.uint8))


def test_levels_of_an_unknown_type_are_refused() -> None:
    with pytest.raises(InputError, match="int32"):
        rgb(np.zeros((4, 4), np.int32))


@pytest.mark.parametrize(
    ("metric", "shape", "least"),
    [
        (lambda x: ssim_y(x, x), (10, 40, 3), "11 x 11"),
        (lambda x: gmsd_y(x, x), (40, 5, 3), "6 x 6"),
        (niqe, (95, 400, 3), "96 x 192"),
        (niqe, (191, 191, 3), "96 x 192"),
        (lambda x: grid_energy(x, 8), (31, 60), "32 x 32"),
        (lambda x: texture_kept(x, x), (1, 60), "2 x 2"),
    ],
)
def test_too_small_is_refused_with_the_least_size(
    metric: Callable[[Levels], float], shape: tuple[int, ...], least: str
) -> None:
    with pytest.raises(InputError, match=rf"{least} pixels at least; this picture has {shape[1]} x"):
        metric(np.zeros(shape, np.uint8))


def test_the_least_size_is_enough() -> None:
    assert math.isfinite(niqe(photo()[:96, :192]))
    assert math.isfinite(ssim_y(photo(11), photo(11)))
    assert gmsd_y(photo(6), noisy(photo(6))) >= 0


@pytest.mark.parametrize("name", AGAINST_REFERENCE)
def test_two_sizes_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="20 x 16 and 16 x 16"):
        AGAINST_REFERENCE[name](np.zeros((16, 20, 3), np.uint8), np.zeros((16, 16, 3), np.uint8))


@given(two_pictures)
def test_psnr_is_scikit_images(both: tuple[Levels, Levels]) -> None:
    x, y = both
    if (studio_luma(x) != studio_luma(y)).any():
        expected = peak_signal_noise_ratio(studio_luma(x), studio_luma(y), data_range=1)
        assert psnr_y(x, y) == pytest.approx(expected, rel=1e-9)


def test_ssim_is_scikit_images_where_nothing_is_inverted() -> None:
    x, y = (np.round(studio_luma(p) * 255) / 255 for p in (photo(), noisy(photo(), 2)))
    _, whole = structural_similarity(
        x, y, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    inside = whole[5:-5, 5:-5]
    assert ssim(x, y) == pytest.approx(inside.clip(0).mean(), abs=2e-4)
    assert ssim(x, 1 - x) >= 0


def test_gmsd_is_the_published_one_inside() -> None:
    def gradient(picture: Levels) -> NDArray[np.float64]:
        small = convolve(studio_luma(picture) * 255, np.full((2, 2), 0.25))[::2, ::2]
        prewitt = np.array([[1.0, 0, -1]] * 3) / 3
        return np.hypot(convolve(small, prewitt), convolve(small, prewitt.T))[1:-1, 1:-1]

    a, b = gradient(photo()), gradient(noisy(photo()))
    expected = ((2 * a * b + 170) / (a**2 + b**2 + 170)).std()
    assert gmsd_y(photo(), noisy(photo())) == pytest.approx(expected, rel=1e-9)


def test_the_shape_of_a_block_is_the_nearest_of_all() -> None:
    blocks = np.random.default_rng(0).normal(size=(5, 96, 96)) ** 3
    place, left, right = niqe_module._fit(blocks)
    a = niqe_module.SHAPES
    for block, found, l_scale, r_scale in zip(blocks, place, left, right, strict=True):
        l_std, r_std = (np.sqrt(np.mean(block[side] ** 2)) for side in (block < 0, block > 0))
        ratio = l_std / r_std
        moments = np.mean(np.abs(block)) ** 2 / np.mean(block**2)
        wanted = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
        assert found == np.argmin((gamma(2 / a) ** 2 / (gamma(1 / a) * gamma(3 / a)) - wanted) ** 2)
        scale = np.sqrt(gamma(1 / a[found]) / gamma(3 / a[found]))
        assert (l_scale, r_scale) == pytest.approx((l_std * scale, r_std * scale))


def test_niqe_tells_a_photograph_from_what_is_none() -> None:
    blurred = np.asarray(Image.fromarray(photo()).reduce(4).resize((288, 288), Image.Resampling.BICUBIC))
    assert niqe(photo()) < niqe(blurred)
    assert math.isnan(niqe(np.full((192, 192, 3), 77, np.uint8)))


def test_niqe_sees_neither_a_flat_margin_of_less_than_a_block_nor_the_depth() -> None:
    wide = np.pad(photo(), ((0, 95), (0, 95), (0, 0)))
    assert niqe(wide) == pytest.approx(niqe(photo()), abs=0.02)
    assert niqe(photo().astype(np.uint16) * 257) == niqe(photo())


@given(st.integers(8, 60), st.integers(8, 60), st.integers(5, 90), st.integers(5, 90))
def test_imresize_keeps_a_constant_and_agrees_with_pillow_inside(h: int, w: int, h2: int, w2: int) -> None:
    for method in ("cubic", "lanczos3", "box"):
        assert np.allclose(imresize(np.full((h, w), 0.3), h2, w2, method), 0.3)


@pytest.mark.parametrize("side", [72, 96, 333, 576])
@pytest.mark.parametrize(
    ("method", "pillow"),
    [
        ("cubic", Image.Resampling.BICUBIC),
        ("lanczos3", Image.Resampling.LANCZOS),
        ("box", Image.Resampling.BOX),
    ],
)
def test_imresize_is_pillows_away_from_the_edge(side: int, method: str, pillow: Image.Resampling) -> None:
    x = studio_luma(photo())
    expected = np.asarray(Image.fromarray(x.astype(np.float32)).resize((side, side), pillow))
    inside = slice(side // 8, -side // 8)
    # of a pixel that is partly covered, Pillow's box takes all or nothing
    tolerance = 0.05 if method == "box" and side == 333 else 1e-4
    error = np.abs(imresize(x, side, side, method) - expected)[inside, inside]
    assert error.mean() < tolerance
    assert tolerance > 0.01 or error.max() < tolerance


@given(arrays(np.float64, (12, 18), elements=st.floats(0, 1)), st.integers(1, 12), st.integers(1, 18))
def test_the_mean_of_areas_keeps_the_mean(x: NDArray[np.float64], height: int, width: int) -> None:
    assert imresize(x, height, width, "box").mean() == pytest.approx(x.mean(), abs=1e-9)


@given(pictures, st.integers(1, 4))
def test_repeated_pixels_are_wholly_consistent(picture: Levels, factor: int) -> None:
    large = picture.repeat(factor, 0).repeat(factor, 1)
    assert consistency(large, picture) > 200
    assert colour_error(large, picture) < 1e-6


def test_a_tint_is_a_colour_error_and_detail_is_none() -> None:
    small = np.asarray(Image.fromarray(photo()).reduce(4))
    tinted = (photo().astype(int) + np.array([9, 0, 0])).clip(0, 255).astype(np.uint8)
    assert colour_error(photo(), small) < 1
    assert colour_error(tinted, small) > 4
    assert consistency(photo(), small) > 45
    assert consistency(noisy(photo(), 20), small) < 40


@pytest.mark.parametrize("shape", [(20, 20), (40, 80), (80, 40)])
def test_what_is_no_enlargement_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"no enlargement of one of 30 x 30"):
        consistency(np.zeros(shape, np.uint8), np.zeros((30, 30), np.uint8))


def test_a_grid_of_patches_is_seen_at_its_own_period() -> None:
    plain = photo()
    for period in (4, 8):
        stamp = np.zeros((period, period))
        stamp[0, 0] = 40
        grid = np.tile(stamp, (288 // period, 288 // period))[..., None]
        patched = (plain + grid).clip(0, 255).astype(np.uint8)
        assert grid_energy(patched, period) > grid_energy(plain, period) + 0.2
    assert grid_energy(np.full((64, 64), 9, np.uint8), 4) == 0


def test_a_step_on_a_tile_border_is_seen_and_the_subject_is_not() -> None:
    plain = photo() // 2
    stepped = plain.astype(int)
    stepped[:, 144:] += 40
    stepped = stepped.astype(np.uint8)
    assert seam_energy(plain, plain, [144], []) == 1
    assert seam_energy(stepped, plain, [144], []) > 1.05
    assert seam_energy(stepped, plain, [60], [60]) < 1
    with pytest.raises(InputError, match="tile borders"):
        seam_energy(plain, plain, [], [])


def test_texture_that_is_lost_and_texture_that_is_made_up() -> None:
    blurred = np.asarray(Image.fromarray(photo()).reduce(2).resize((288, 288), Image.Resampling.BICUBIC))
    assert texture_kept(blurred, photo()) < 0.9
    assert texture_kept(noisy(photo(), 20), photo()) > 1.1
    assert texture_kept(np.zeros((8, 8)), np.zeros((8, 8))) == 1
