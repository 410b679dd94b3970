"""Blur kernels of Real-ESRGAN (Wang et al. 2021, sections 3.1 and 3.4), as BasicSR's formulas define them.

All kernels are float64 (size, size) of odd size, centred, with sum 1. With the offset u of a tap from the
centre (x, y in pixels) and the covariance S, q = u' S^-1 u:

    gaussian                exp(-q / 2)
    generalized gaussian    exp(-q^beta / 2)
    plateau                 1 / (1 + q^beta)
    sinc                    w J1(w r) / (2 pi r), r = |u|: an ideal low pass of cutoff w radians per pixel
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

Kernel = NDArray[np.float64]


def covariance(sigma_x: float, sigma_y: float, theta: float) -> NDArray[np.float64]:
    """S of an ellipse with these standard deviations (pixels), turned by `theta` (radians)."""
    turn = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    return np.asarray(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)


def gaussian(size: int, S: NDArray[np.float64]) -> Kernel:
    return _normalised(np.exp(-_mahalanobis_squared(size, S) / 2))


def generalized_gaussian(size: int, S: NDArray[np.float64], beta: float) -> Kernel:
    """Heavier tails than a Gaussian below beta = 1, flatter above."""
    return _normalised(np.exp(-(_mahalanobis_squared(size, S) ** beta) / 2))


def plateau(size: int, S: NDArray[np.float64], beta: float) -> Kernel:
    return _normalised(1 / (1 + _mahalanobis_squared(size, S) ** beta))


def sinc(size: int, omega_c: float) -> Kernel:
    """What rings: the filter that cuts all above `omega_c` (radians per pixel, at most pi)."""
    x = _offsets(size)
    r = np.hypot(*np.meshgrid(x, x))
    r[size // 2, size // 2] = 1
    bessel = torch.special.bessel_j1(torch.from_numpy(omega_c * r)).numpy()
    kernel = omega_c * bessel / (2 * np.pi * r)
    kernel[size // 2, size // 2] = omega_c**2 / (4 * np.pi)
    return _normalised(kernel)


def _offsets(size: int) -> NDArray[np.float64]:
    return np.arange(size, dtype=np.float64) - size // 2


def _mahalanobis_squared(size: int, S: NDArray[np.float64]) -> NDArray[np.float64]:
    u = np.stack(np.meshgrid(_offsets(size), _offsets(size)), axis=-1)
    return np.asarray(((u @ np.linalg.inv(S)) * u).sum(-1))


def _normalised(kernel: Kernel) -> Kernel:
    return np.asarray(kernel / kernel.sum())
