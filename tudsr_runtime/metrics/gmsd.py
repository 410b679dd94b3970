"""GMSD, gradient magnitude similarity deviation (Xue et al. 2014): are the edges where they belong?"""

from __future__ import annotations

import numpy as np

from tudsr_runtime.metrics.pixels import Array, Floats, require_at_least, require_same_size, studio_luma

C = 170.0
"""The constant that keeps the similarity finite, for levels of 0 to 255, as published."""
LEAST = 6


def gmsd_y(picture: Array, reference: Array) -> float:
    """0 for equal pictures, larger is worse; symmetric. On Y, halved by means of 2 x 2, Prewitt gradients.

    Differs from the published program at the picture's edge alone: there it sees black, here only pixels
    whose whole neighbourhood exists are counted.

    Raises:
        InputError: the sizes differ, or a side is below 6 px.
    """
    require_same_size(picture, reference)
    require_at_least(picture, LEAST, LEAST, "GMSD")
    a, b = (_gradient(studio_luma(x) * 255) for x in (picture, reference))
    return float(((2 * a * b + C) / (a**2 + b**2 + C)).std())


def _gradient(luma: Floats) -> Floats:
    height, width = (side // 2 for side in luma.shape)
    small = luma[: height * 2, : width * 2].reshape(height, 2, width, 2).mean((1, 3))
    across = small[:, 2:] - small[:, :-2]
    down = small[2:] - small[:-2]
    horizontal = (across[:-2] + across[1:-1] + across[2:]) / 3
    vertical = (down[:, :-2] + down[:, 1:-1] + down[:, 2:]) / 3
    magnitude: Floats = np.hypot(horizontal, vertical)
    return magnitude
