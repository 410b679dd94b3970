"""PSNR and SSIM on Y: how near a picture is to its reference, pixel by pixel.

As super-resolution papers compute them, OSEDiff's log among them (pyiqa's `psnr` and `ssim` with
`test_y_channel`): Y of YCbCr by BT.601, no border cut. Neither sees what people see: both prefer a soft
picture to one with detail that is sharp and a pixel beside its place.
"""

from __future__ import annotations

import math

import numpy as np

from tudsr_runtime.metrics.filters import filter_valid, gaussian_window
from tudsr_runtime.metrics.pixels import Array, Floats, require_at_least, require_same_size, studio_luma

WINDOW = gaussian_window(11, 1.5)
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr_y(picture: Array, reference: Array) -> float:
    """Peak signal-to-noise ratio of Y, dB; infinite for equal pictures. InputError where the sizes differ."""
    require_same_size(picture, reference)
    return psnr(studio_luma(picture), studio_luma(reference))


def psnr(x: Array, y: Array) -> float:
    """Peak signal-to-noise ratio of two arrays of one shape whose white is 1, dB; infinite where equal."""
    error = float(np.mean(np.square(x.astype(np.float64) - y)))
    return -10 * math.log10(error) if error else math.inf


def ssim_y(picture: Array, reference: Array) -> float:
    """Structural similarity of Y (Wang et al. 2004, 11 x 11 Gaussian window), at most 1.

    Raises:
        InputError: the sizes differ, or a side is below 11 px.
    """
    require_same_size(picture, reference)
    require_at_least(picture, len(WINDOW), len(WINDOW), "SSIM")
    return ssim(studio_luma(picture), studio_luma(reference))


def ssim(x: Floats, y: Floats) -> float:
    """Structural similarity of two (h, w) in [0, 1]; as in pyiqa rounded to 256 levels, and a window whose
    covariance is negative counts as 0."""
    x, y = np.round(x * 255), np.round(y * 255)
    mean_x, mean_y = filter_valid(x, WINDOW), filter_valid(y, WINDOW)
    variance_x = filter_valid(x * x, WINDOW) - mean_x**2
    variance_y = filter_valid(y * y, WINDOW) - mean_y**2
    covariance = filter_valid(x * y, WINDOW) - mean_x * mean_y
    structure = ((2 * covariance + C2) / (variance_x + variance_y + C2)).clip(0)
    brightness = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return float((structure * brightness).mean())
