"""Pictures that are passed in memory: what comes as an array or a Pillow image goes back as one."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tudsr_runtime.errors import InputError
from tudsr_runtime.pictures.picture import Layout, Picture, collected, enlarged, from_channels, from_image
from tudsr_runtime.pictures.pillow import is_pillows
from tudsr_runtime.planes import FloatArray, Levels

LEVEL_TYPES = ("uint8", "uint16", "float32")


def to_picture(image: Levels | Image.Image) -> Picture:
    """The picture that an array or a Pillow image holds.

    Raises:
        InputError: neither; or an array that is not (h, w) or (h, w, 1 to 4) levels, or a pixel format of
            Pillow that is not supported, or the image of a damaged file.
    """
    if isinstance(image, Image.Image):
        try:
            return from_image(image)
        except Exception as error:
            if not is_pillows(error):
                raise
            reason = str(error) or type(error).__name__
            raise InputError(f"the Pillow image cannot be decoded ({reason})") from error
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"a picture must be an array or a Pillow image, not {type(image).__name__}", hint=_opened(image)
        )
    _check(image)
    return from_channels(image)


def like(
    image: Levels | Image.Image,
    picture: Picture,
    bands: Iterable[FloatArray],
    size: tuple[int, int],
    by_columns: bool = False,
) -> Levels | Image.Image:
    """The enlarged picture of `size` (width, height) as the same kind of object as `image`.

    `bands` and `by_columns` as in `enlarged`.

    A Pillow image comes back as L, LA, I;16, RGB or RGBA, with its colour profile.
    """
    alpha, dtype = picture.alpha is not None, picture.levels.dtype
    if isinstance(image, Image.Image) and alpha:
        dtype = np.dtype(np.uint8)  # Pillow has no alpha of 16 bits.
    layout = Layout(*size, picture.grey, alpha, dtype)
    result = collected(enlarged(picture, bands, layout, by_columns), layout, by_columns)
    if not isinstance(image, Image.Image):
        return result[..., None] if image.shape[2:] == (1,) else result
    made = Image.fromarray(result)
    if picture.icc is not None:
        made.info["icc_profile"] = picture.icc
    return made


def _opened(thing: object) -> str | None:
    """What makes a picture of what is none."""
    if isinstance(thing, (str, os.PathLike)):
        return "PIL.Image.open(...) of the file"
    return "numpy.asarray(...) of it, as (h, w, channels)" if hasattr(thing, "__array__") else None


def _mended(image: NDArray[np.generic]) -> str | None:
    """What would make a picture of the array."""
    shape = image.shape
    if image.ndim == 4 and shape[0] == 1:
        return "image[0], one picture at a time"
    if image.ndim == 3 and shape[0] in range(1, 5) and shape[2] not in range(1, 5):
        return "image.transpose(1, 2, 0), channels last"
    if image.dtype.kind == "f" and image.dtype.name not in LEVEL_TYPES:
        return "image.astype(numpy.float32), in [0, 1]"
    return "image.astype(numpy.uint8), in 0 to 255" if image.dtype.kind in "iub" and image.size else None


def _check(image: Levels) -> None:
    shape, kind = image.shape, image.dtype
    channels = shape[2] if len(shape) == 3 else 1
    is_picture = len(shape) in (2, 3) and channels in range(1, 5) and image.size > 0
    if kind.name not in LEVEL_TYPES or not is_picture:
        known = ", ".join(LEVEL_TYPES)
        raise InputError(
            f"a picture must be a (h, w) or (h, w, 1 to 4) array of {known}, not {kind} {shape}",
            hint=_mended(image),
        )
    if kind == np.float32:
        low, high = image.min(), image.max()
        if not (low >= 0 and high <= 1):
            raise InputError(f"a float picture must be in [0, 1], this one spans {low:g} to {high:g}")
