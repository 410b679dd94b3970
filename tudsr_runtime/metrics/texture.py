"""Gradient energy: how much texture there is, and whether it betrays how the picture was made.

`texture_kept` sets it against a reference, `seam_energy` on tile borders against elsewhere, `grid_energy` by
its place in a grid: a decoder that puts pixels together from patches leaves a pattern of the patches' period.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tudsr_runtime.errors import InputError
from tudsr_runtime.metrics.pixels import Array, Floats, full_luma, require_at_least, require_same_size

BAND = 8
"""Pixels on either side of a border that count as its own."""


def gradient_energy(picture: Array) -> float:
    """Mean squared difference of neighbours' luma, both axes, in levels of 255 squared. 2 x 2 px at least."""
    require_at_least(picture, 2, 2, "gradient energy")
    return float(_energies(full_luma(picture)).mean())


def texture_kept(picture: Array, reference: Array) -> float:
    """Gradient energy over that of the reference: below 1 too smooth, above 1 too sharp or noisy.

    Raises:
        InputError: the sizes differ, or a side is below 2 px.
    """
    require_same_size(picture, reference)
    return _ratio(gradient_energy(picture), gradient_energy(reference))


def grid_energy(picture: Array, period: int) -> float:
    """How unevenly gradients lie on a grid of `period` px, in units of their mean; about 0 for no grid.

    Differences of neighbours, averaged over a whole axis, are folded with `period`: the largest phase's
    excess over the mean of the phases. That of the periods beside it, which the subject alone has, is taken
    off; of both axes the larger counts. JPEG leaves a grid of 8, in many a reference too.

    Raises:
        InputError: a side is below four periods.
    """
    require_at_least(picture, 4 * period, 4 * period, f"grid energy of period {period}")
    luma = full_luma(picture) * 255
    profiles = (np.abs(np.diff(luma, axis=axis)).mean(1 - axis) for axis in (0, 1))
    return max(_above_neighbours(profile, period) for profile in profiles)


def seam_energy(picture: Array, plain: Array, columns: Sequence[int], rows: Sequence[int]) -> float:
    """Gradient energy near tile borders over that elsewhere, each over the same of a plain enlargement.

    1 means that nobody can tell; blending softens (below 1), a step at a border adds (above 1). The plain
    enlargement takes out what the subject itself has there.

    Args:
        plain: the input enlarged without tiles (bicubic) to the same size.
        columns, rows: where the middles of overlaps lie, in px of the picture.

    Raises:
        InputError: the sizes differ, or no border lies inside the picture.
    """
    require_same_size(picture, plain)
    near = _near(picture.shape[0], rows)[:, None] | _near(picture.shape[1], columns)
    if not near.any() or near.all():
        raise InputError("seam energy needs tile borders inside the picture, and pixels away from them")
    ours, theirs = (_energies(full_luma(x)) for x in (picture, plain))
    borders = _ratio(float(ours[near].mean()), float(theirs[near].mean()))
    return _ratio(borders, _ratio(float(ours[~near].mean()), float(theirs[~near].mean())))


def _energies(luma: Floats) -> Floats:
    """Squared differences to the right and lower neighbour, (h, w), in levels of 255; 0 beyond the edge."""
    across = np.diff(luma, axis=1, append=luma[:, -1:])
    down = np.diff(luma, axis=0, append=luma[-1:])
    return (across**2 + down**2) * 255**2


def _above_neighbours(profile: Floats, period: int) -> float:
    beside = (_excess(profile, period - 1) + _excess(profile, period + 1)) / 2
    return _excess(profile, period) - beside


def _excess(profile: Floats, period: int) -> float:
    whole = profile[: len(profile) // period * period].reshape(-1, period).mean(0)
    return _ratio(float(whole.max()), float(whole.mean())) - 1


def _near(length: int, middles: Sequence[int]) -> NDArray[np.bool_]:
    near = np.zeros(length, np.bool_)
    for middle in middles:
        near[max(0, middle - BAND) : middle + BAND] = True
    return near


def _ratio(value: float, against: float) -> float:
    """1 where there is neither."""
    if against:
        return value / against
    return np.inf if value else 1.0
