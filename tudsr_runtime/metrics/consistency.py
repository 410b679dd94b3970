"""What can be asked of an enlargement without a reference: is it still a picture of the same thing?

Honest at x8 and beyond, where no reference exists: reduced again by plain means, the result has to give the
input. Both say nothing on how good the detail is that was added.
"""

from __future__ import annotations

import numpy as np

from tudsr_runtime.errors import InputError
from tudsr_runtime.metrics.fidelity import psnr
from tudsr_runtime.metrics.pixels import Array, rgb, size_text, studio_luma
from tudsr_runtime.metrics.resize import imresize

AREAS = 16
"""Areas along the shorter side in which colours are compared."""
LARGEST_SKEW = 0.02
"""Difference of the two scales, relative, above which it is not an enlargement of this input."""


def consistency(picture: Array, source: Array) -> float:
    """PSNR of Y in dB, of `picture` reduced to the input's size by means of areas, against the input.

    Noise and JPEG traces that were rightly removed count against it, so compare methods, not inputs.

    Raises:
        InputError: `picture` is no enlargement of a picture of this shape.
    """
    require_enlargement(picture, source)
    height, width = source.shape[:2]
    return psnr(imresize(studio_luma(picture), height, width, "box"), studio_luma(source))


def colour_error(picture: Array, source: Array) -> float:
    """Root mean square difference of R, G and B in 16 and more areas a side, in levels of 255.

    `source` is the input, or a reference: any picture of the same thing in any size. Fine detail cancels out;
    a tint, or an area that has become darker, stays.

    Raises:
        InputError: the two are not of the same shape.
    """
    require_enlargement(picture, source)
    cell = max(1.0, min(source.shape[:2]) / AREAS)
    height, width = (max(1, round(side / cell)) for side in source.shape[:2])
    difference = imresize(rgb(picture), height, width, "box") - imresize(rgb(source), height, width, "box")
    return float(np.sqrt(np.mean(np.square(difference)))) * 255


def scale_of(picture: Array, source: Array) -> float:
    """How much larger `picture` is: the geometric mean over both axes."""
    ratio = picture.shape[0] * picture.shape[1] / (source.shape[0] * source.shape[1])
    return float(np.sqrt(ratio))


def require_enlargement(picture: Array, source: Array) -> None:
    """InputError, with both sizes, where `picture` is smaller than `source` or of another shape.

    A side is rounded to whole pixels, which a small picture's scale shows.
    """
    height, width = (large / small for large, small in zip(picture.shape[:2], source.shape[:2], strict=True))
    slack = LARGEST_SKEW + 1 / min(picture.shape[:2])
    if min(height, width) < 1 or abs(height / width - 1) > slack:
        raise InputError(f"a picture of {size_text(picture)} is no enlargement of one of {size_text(source)}")
