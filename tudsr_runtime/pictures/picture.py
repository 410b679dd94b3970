"""A picture as the model sees it, with all that has to be given back afterwards.

file                    model sees           written again as
1, L, I;16 (12 bits)    grey, three times    grey
LA, 16-bit too          grey, filled         grey and alpha
P, RGB, YCbCr, RGB;16   RGB                  RGB
P + tRNS, RGBA, RGBA;16 RGB, filled          RGBA
CMYK                    RGB (its profile)    RGB

8 bits stay 8 bits and 16 stay 16, as far as the format that is written holds them (`formats`).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from tudsr_runtime.errors import InputError
from tudsr_runtime.pictures.carried import Carried
from tudsr_runtime.pictures.metadata import upright
from tudsr_runtime.pictures.pillow import is_pillows
from tudsr_runtime.pictures.sixteen_bit import Levels16, raw_mode
from tudsr_runtime.pictures.transparency import AlphaRows, fill_hidden
from tudsr_runtime.planes import WRAPS, Levels, to_levels, white

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R BT.601, the weights of Pillow's own conversion to grey."""

LEVELS_OF_RAW = {"L;2": 4, "L;4": 16}
"""Grey of few bits, which Pillow spreads over 0 to 255, but not the level that a PNG calls transparent."""

PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
"""TIFF tag, and its value for negatives."""


@dataclass(frozen=True)
class Picture:
    """Pixels and what belongs to them. Upright: EXIF orientation is already applied.

    `levels` is (h, w) if grey, else (h, w, 3), with white at the top of its dtype; `alpha` (h, w) of the same
    dtype, or None. `icc`, `exif` and `xmp` are the raw blocks, `exif` without orientation and thumbnail;
    `carried` is what else belongs to it.
    `notes` say in plain words what was lost or converted on the way; `wrap` which edges meet, by a name in
    `WRAPS`.
    """

    levels: Levels
    alpha: Levels | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    carried: Carried = Carried()  # noqa: RUF009 - immutable
    notes: tuple[str, ...] = ()
    wrap: str = "none"

    @property
    def width(self) -> int:
        """Pixels per row."""
        return int(self.levels.shape[1])

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.levels.shape[0])

    @property
    def bytes(self) -> int:
        """Size of all levels."""
        return self.levels.nbytes + (0 if self.alpha is None else self.alpha.nbytes)

    @property
    def grey(self) -> bool:
        """Whether there is one channel besides alpha."""
        return self.levels.ndim == 2

    @property
    def sixteen_bit(self) -> bool:
        """Whether a channel has 16 bits."""
        return self.levels.dtype == np.uint16

    @property
    def transparent(self) -> bool:
        """Whether any pixel lets the background through."""
        return self.alpha is not None and bool(self.alpha.min() < white(self.alpha.dtype))


@dataclass(frozen=True)
class Layout:
    """The pixels of a result: size in px, whether grey, whether with alpha, and the dtype of its levels."""

    width: int
    height: int
    grey: bool = False
    alpha: bool = False
    dtype: np.dtype[Any] = np.dtype(np.uint8)  # noqa: RUF009 - immutable

    @property
    def mode(self) -> str:
        """Pillow's name for the channels: L, LA, RGB or RGBA."""
        return ("L" if self.grey else "RGB") + ("A" if self.alpha else "")

    @property
    def channels(self) -> int:
        """Values per pixel."""
        return len(self.mode)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array of levels: (h, w) or (h, w, channels)."""
        return (self.height, self.width, self.channels)[: 2 if self.channels == 1 else 3]

    @property
    def bytes(self) -> int:
        """Size of the uncompressed pixels."""
        return self.width * self.height * self.channels * self.dtype.itemsize


def from_image(file: Image.Image, orientation: int | None = None) -> Picture:
    """Decode and normalise a picture that Pillow has opened; metadata is not touched.

    `orientation`, 1 to 8, is what to turn it by; None: what it says about itself.

    Raises:
        InputError: a pixel format outside the table above.
    """
    raw = raw_mode(file) if isinstance(file, ImageFile.ImageFile) else ""
    image = upright(file, orientation)
    if image.mode.startswith("I;16"):
        return _from_grey_of_16_bits(image, raw)
    if raw in LEVELS_OF_RAW and "transparency" in image.info:
        image = image.copy()  # The host's own is left as it is.
        image.info["transparency"] *= 255 // (LEVELS_OF_RAW[raw] - 1)
    notes = [f"16-bit {image.mode} is processed as 8-bit"] if ";16" in raw else []
    icc = image.info.get("icc_profile")
    if image.mode == "CMYK":
        image, said = _cmyk_to_rgb(image, icc)
        icc, notes = None, [*notes, said]
    return from_channels(np.asarray(image.convert(_plain_mode(image))), icc, tuple(notes))


def from_channels(channels: Levels, icc: bytes | None = None, notes: tuple[str, ...] = ()) -> Picture:
    """The picture of (h, w) or (h, w, 1 to 4) levels: grey, grey and alpha, RGB, RGBA.

    Colour that is hidden under full transparency is replaced by that around it.
    """
    if channels.ndim == 2:
        return Picture(channels, icc=icc, notes=notes)
    count = channels.shape[2]
    colour = channels[..., 0] if count <= 2 else channels[..., :3]
    if count in (1, 3):
        return Picture(np.ascontiguousarray(colour), icc=icc, notes=notes)
    alpha = np.ascontiguousarray(channels[..., -1])
    return Picture(fill_hidden(np.ascontiguousarray(colour), alpha), alpha, icc, notes=notes)


def enlarged(
    picture: Picture, bands: Iterable[NDArray[np.float32]], layout: Layout, by_columns: bool = False
) -> Iterator[NDArray[np.generic]]:
    """The rows of the result as its file holds them: (rows, width) or (rows, width, channels) levels.

    Args:
        picture: what was enlarged, for its alpha.
        bands: float32 (rows, width, 3) in [0, 1], from top to bottom; rounded to whole levels as they come.
        layout: of the result.
        by_columns: whether bands and result are (columns, height, ...), from left to right.
    """
    alpha = None
    if layout.alpha and picture.alpha is not None:
        size, small, meets = (layout.width, layout.height), picture.alpha, WRAPS[picture.wrap]
        if by_columns:
            size, small, meets = size[::-1], np.ascontiguousarray(small.T), meets[::-1]
        alpha = AlphaRows(small, *size, layout.dtype, meets)
    row = 0
    for band in filter(len, bands):
        levels = to_levels(band @ LUMA if layout.grey else band, layout.dtype)
        if alpha is not None:
            levels = np.dstack([levels, alpha.rows(row, row + len(band))])
        yield levels
        row += len(band)


def collected(lines: Iterable[NDArray[np.generic]], layout: Layout, by_columns: bool) -> Levels:
    """All of the result, (h, w) or (h, w, channels), of what `enlarged` gives."""
    result = np.empty(layout.shape, layout.dtype)
    places, at = result.swapaxes(0, 1) if by_columns else result, 0
    for band in lines:
        places[at : at + len(band)] = band
        at += len(band)
    return result


def _from_grey_of_16_bits(image: Image.Image, raw: str) -> Picture:
    grey: Levels16 = np.asarray(image).astype(np.uint16)
    if "I;12" in raw:
        grey = np.rint(grey * (65535 / 4095)).astype(np.uint16)
    # Pillow turns a negative of 8 bits round, but not one of 16.
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 65535 - grey
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Picture(grey, icc=image.info.get("icc_profile"))
    alpha = np.where(grey == transparent, 0, 65535).astype(np.uint16)
    return from_channels(np.dstack([grey, alpha]), image.info.get("icc_profile"))


def _plain_mode(image: Image.Image) -> str:
    """The one of L, LA, RGB, RGBA that holds the picture without loss."""
    if image.mode in ("1", "L", "LA", "La"):
        return "LA" if image.has_transparency_data else "L"
    if image.mode in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"):
        return "RGBA" if image.has_transparency_data else "RGB"
    raise InputError(
        f"pixel format {image.mode} is not supported",
        hint="save it as RGB or greyscale with 8 or 16 bits",
    )


def _cmyk_to_rgb(image: Image.Image, icc: bytes | None) -> tuple[Image.Image, str]:
    if not icc:
        return image.convert("RGB"), "CMYK without a profile: converted to RGB, colours are approximate"
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        converted = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except Exception as error:
        if not is_pillows(error):
            raise
        return image.convert("RGB"), f"CMYK profile cannot be used ({error}): colours are approximate"
    assert converted is not None  # None comes only from work in place
    return converted, "CMYK: converted to sRGB with its own profile"
