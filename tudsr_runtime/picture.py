"""A picture as the model sees it, with all that has to be given back afterwards.

file             model sees           written again as
1, L             grey, three times    L
I;16 (12 bits)   grey, three times    I;16 in PNG, else L
LA               grey, filled         LA
P, RGB, YCbCr    RGB                  RGB
P + tRNS, RGBA   RGB, filled          RGBA
CMYK             RGB (its profile)    RGB
16-bit colour    8-bit RGB            RGB, with a note
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from tudsr_runtime.errors import InputError
from tudsr_runtime.metadata import upright
from tudsr_runtime.transparency import fill_hidden, resize_alpha

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R BT.601, the weights of Pillow's own conversion to grey."""


@dataclass(frozen=True)
class Picture:
    """Pixels and what belongs to them. Upright: EXIF orientation is already applied.

    `rgb` is float32 (H, W, 3) in [0, 1]; grey pictures hold their grey three times. `alpha` is uint8 (H, W),
    or None. `icc` and `exif` are the raw blocks, `exif` without orientation and thumbnail. `notes` say in
    plain words what was lost or converted on the way.
    """

    rgb: NDArray[np.float32]
    alpha: NDArray[np.uint8] | None = None
    grey: bool = False
    deep: bool = False
    """16 bits per channel, so far only for grey."""
    icc: bytes | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def transparent(self) -> bool:
        """Whether any pixel lets the background through."""
        return self.alpha is not None and bool(self.alpha.min() < 255)


def from_image(file: ImageFile.ImageFile) -> Picture:
    """Decode and normalise a picture that Pillow has opened; metadata is not touched.

    Raises:
        InputError: a pixel format outside the table above.
    """
    # The raw mode that the decoder will read; it is gone once the pixels are loaded.
    raw = " ".join(str(tile.args) for tile in file.tile)
    image = upright(file)
    if image.mode.startswith("I;16"):
        return _from_deep_grey(image, 4095 if "I;12" in raw else 65535)
    notes = ["16-bit colour is processed as 8-bit"] if ";16" in raw else []
    icc = image.info.get("icc_profile")
    if image.mode == "CMYK":
        image, said = _cmyk_to_rgb(image, icc)
        icc, notes = None, [*notes, said]
    plain = image.convert(_plain_mode(image))
    channels = np.asarray(plain)
    grey, alpha = plain.mode in ("L", "LA"), None
    if plain.mode in ("LA", "RGBA"):
        channels, alpha = channels[..., :-1], np.ascontiguousarray(channels[..., -1])
    rgb = _three_channels(channels.astype(np.float32) / np.float32(255))
    if alpha is not None:
        rgb = fill_hidden(rgb, alpha)
    return Picture(rgb, alpha, grey, icc=icc, notes=tuple(notes))


def enlarged(
    picture: Picture,
    bands: Iterable[NDArray[np.float32]],
    width: int,
    height: int,
    *,
    alpha: bool = True,
    grey: bool = True,
    deep: bool = True,
) -> Image.Image:
    """Build the enlarged picture from its rows, as L, LA, I;16, RGB or RGBA.

    Args:
        picture: what was enlarged; says whether the result is grey or deep, and has the alpha to enlarge.
        bands: float32 (rows, width, 3) in [0, 1], from top to bottom, `height` rows in all; rounded to whole
            levels as they come, so that the result is never held as floats.
        alpha: whether the file format holds alpha; likewise `grey`, and `deep` for 16 bits.
    """
    grey, deep = picture.grey and grey, picture.grey and picture.deep and grey and deep
    levels = np.empty((height, width) if grey else (height, width, 3), np.uint16 if deep else np.uint8)
    row = 0
    for band in bands:
        levels[row : row + len(band)] = _quantised(band @ LUMA if grey else band, np.iinfo(levels.dtype).max)
        row += len(band)
    image = Image.fromarray(levels)
    if alpha and not deep and picture.alpha is not None:
        image.putalpha(Image.fromarray(resize_alpha(picture.alpha, width, height)))
    return image


def _quantised(values: NDArray[np.float32], top: int) -> NDArray[np.float32]:
    levels: NDArray[np.float32] = np.clip(values * np.float32(top) + np.float32(0.5), 0, top)
    return levels


def _three_channels(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    if channels.ndim == 3 and channels.shape[2] == 3:
        return channels
    return np.repeat(channels.reshape(*channels.shape[:2], 1), 3, axis=2)


def _from_deep_grey(image: Image.Image, white: int) -> Picture:
    lost = ("the transparent grey value is dropped",) if "transparency" in image.info else ()
    grey = np.asarray(image).astype(np.float32) / np.float32(white)
    icc = image.info.get("icc_profile")
    return Picture(_three_channels(grey), grey=True, deep=True, icc=icc, notes=lost)


def _plain_mode(image: Image.Image) -> str:
    """The one of L, LA, RGB, RGBA that holds the picture without loss."""
    if image.mode in ("1", "L", "LA", "La"):
        return "LA" if image.has_transparency_data else "L"
    if image.mode in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"):
        return "RGBA" if image.has_transparency_data else "RGB"
    raise InputError(
        f"pixel format {image.mode} is not supported",
        hint="save it as 8-bit RGB, or as 8-bit or 16-bit greyscale",
    )


def _cmyk_to_rgb(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, str]:
    if not icc:
        return image.convert("RGB"), "CMYK without a profile: converted to RGB, colours are approximate"
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        converted = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError) as error:
        return image.convert("RGB"), f"CMYK profile cannot be used ({error}): colours are approximate"
    assert converted is not None  # None comes only from work in place
    return converted, "CMYK: converted to sRGB with its own profile"
