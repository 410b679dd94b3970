"""What the gates look at: two tiles and a photograph, the same for every export.

`photo.png` is 160 x 128 px of a cup of coffee, a photograph by Rachel Michetti, courtesy of Pikolo Espresso
Bar, as shipped with scikit-image (`skimage.data.coffee`), reduced twice by averaging; CC0.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tudsr_train.data.dead_leaves import SyntheticImages

PHOTO = "photo.png"
STAGE_FACTOR = 4
"""How often the pictures of a stage's tiles were enlarged: M of the paper."""


def photo() -> NDArray[np.uint8]:
    """The photograph, (128, 160, 3) levels."""
    with resources.files("tudsr_export").joinpath(PHOTO).open("rb") as file, Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def calibration_tiles(tile: int) -> list[Tensor]:
    """A photograph and a synthetic picture, (1, 3, tile, tile) in [-1, 1], such as a stage sees: enlarged
    four times. The first holds whole levels, so that it can be stored as a PNG."""
    return [_whole_levels(_enlarged(_photo_crop(tile), tile)), synthetic_tile(tile)]


def synthetic_tile(tile: int) -> Tensor:
    """A synthetic picture of the training kind, reduced four times and enlarged again."""
    pixels = torch.from_numpy(SyntheticImages(size=tile, num_textures=4)[0]).permute(2, 0, 1)[None]
    return _enlarged(F.interpolate(pixels, scale_factor=1 / STAGE_FACTOR, mode="area"), tile)


def network_tiles(edge: int) -> list[Tensor]:
    """The same two, (1, 3, edge, edge) in [-1, 1], as a network reads them that enlarges by itself: small."""
    return [_whole_levels(_enlarged(_photo_crop(STAGE_FACTOR * edge), edge)), small_synthetic_tile(edge)]


def small_synthetic_tile(edge: int) -> Tensor:
    """A synthetic picture of the training kind, reduced four times."""
    pixels = torch.from_numpy(SyntheticImages(size=STAGE_FACTOR * edge, num_textures=4)[0])
    return F.interpolate(pixels.permute(2, 0, 1)[None], size=(edge, edge), mode="area") * 2 - 1


def network_photo(edge: int) -> NDArray[np.float32]:
    """The photograph, mirrored where it does not reach, for two overlapping tiles of `edge` px beside each
    other: (edge, edge * 5 / 4, 3) in [0, 1]."""
    height, width = edge, edge * 5 // 4
    levels = np.pad(photo(), ((0, max(0, height - 128)), (0, max(0, width - 160)), (0, 0)), mode="symmetric")
    return levels[:height, :width].astype(np.float32) / np.float32(255)


def runtime_photo(tile: int) -> NDArray[np.float32]:
    """A part of the photograph, (h, w, 3) float32 in [0, 1], for a trip through the whole runtime.

    Enlarged by 4 and by 2 it fills one padded tile of the first stage and two overlapping ones of the second.
    """
    width, height = tile * 5 // 32, tile // 8
    return photo()[:height, :width].astype(np.float32) / np.float32(255)


def _photo_crop(tile: int) -> Tensor:
    edge = min(tile // STAGE_FACTOR, 128)
    levels = torch.from_numpy(photo()[:edge, :edge].copy())
    return levels.permute(2, 0, 1)[None].float() / 255


def _enlarged(pixels: Tensor, tile: int) -> Tensor:
    """Pixels in [0, 1] as a tile in [-1, 1]."""
    return F.interpolate(pixels, size=(tile, tile), mode="bilinear") * 2 - 1


def _whole_levels(x: Tensor) -> Tensor:
    return ((x + 1) * 127.5).round() / 127.5 - 1
