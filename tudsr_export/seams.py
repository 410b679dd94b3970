"""How little neighbouring tiles may overlap: what two of them show, blended, against one tile across both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tudsr_export.calibration import photo
from tudsr_export.gates import SEAMS, Report
from tudsr_runtime.planes import FloatArray
from tudsr_runtime.tiling.axis import MAX_RAMP, OVERLAP, plan_axis

LEAST_OVERLAP = 80
"""Overlap in px that is tried in the place of `OVERLAP`: with 576 px, four tiles then reach over 2048 px."""
LOSS_DB = 0.5
"""By how much the pixels between two tiles may be worse than with `OVERLAP`."""
GOOD_DB = 50.0
"""PSNR from which it does not matter any more: a third of a level."""
ENLARGED = 8
HALF_A_LEVEL = 1 / 255
"""Of 255, of pictures in [-1, 1]: on other photographs than the one measured it may be twice as much."""

Restore = Callable[[Tensor], Tensor]


class Seams:
    """The measurement, over all stages; `tile` is the size of tile in px."""

    def __init__(self, tile: int, overlaps: tuple[int, int] = (OVERLAP, LEAST_OVERLAP)) -> None:
        self._tile, self._overlaps = tile, overlaps
        self._kept = True

    @property
    def possible(self) -> bool:
        """Whether tiles of that size may overlap by so much."""
        return max(self._overlaps) <= self._tile // 2

    @property
    def overlap(self) -> int | None:
        """The least overlap that is good in every stage that was measured; None where none was."""
        return self._overlaps[1 if self._kept else 0] if self.possible else None

    def through(self, restore: Restore, stage: str, report: Report) -> None:
        """Measure a stage; `restore` maps a tile (1, 3, T, T) in [-1, 1] to another."""
        if not self.possible:
            return
        usual, closer = seam_figures(restore, self._tile, self._overlaps)
        for overlap, (actual, expected) in zip(self._overlaps, (usual, closer), strict=True):
            report.psnr(SEAMS, f"{stage}, overlap {overlap}", actual, expected, span=2)
        before, after = (measured.value for measured in report.measurements[-2:])
        self._kept &= after >= min(GOOD_DB, before - LOSS_DB)


def seam_figures(restore: Restore, tile: int, overlaps: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """For each overlap, the pixels that two tiles share after blending, and the same of a tile whose middle
    they are; (1, 3, T, ramp), clamped."""
    canvas = _canvas(tile, 2 * tile - min(overlaps))

    def restored(left: int) -> Tensor:
        return restore(canvas[..., left : left + tile].contiguous()).clamp(-1, 1)

    first = restored(0)
    return [_blended(first, restored, tile, overlap) for overlap in overlaps]


def _blended(
    first: Tensor, restored: Callable[[int], Tensor], tile: int, overlap: int
) -> tuple[Tensor, Tensor]:
    axis = plan_axis(2 * tile - overlap, tile, overlap)
    second, across = restored(axis.starts[1]), restored(axis.starts[1] // 2)
    begin = axis.ramp_begin(1)
    end = begin + axis.ramp
    rising = _as_tensor(axis.weights(1)[: axis.ramp])
    falling = _as_tensor(axis.weights(0)[begin:end])
    right = second[..., begin - axis.starts[1] : end - axis.starts[1]]
    middle = axis.starts[1] // 2
    return first[..., begin:end] * falling + right * rising, across[..., begin - middle : end - middle]


def reach_of(enlarge: Restore, edge: int, beyond: int) -> int:
    """How many px from a tile's edge the missing neighbours still show: where what is made of a tile differs
    by half a level or more from what is made of the tile and its neighbours together.

    Args:
        enlarge: maps a picture (1, 3, h, w) in [-1, 1] to a larger one, of a network that takes any size.
        edge, beyond: px of its input: the tile's edge, and how much of the neighbour there is.

    Returns: px of the result, measured at one edge of one photograph.
    """
    levels = torch.from_numpy(_mirrored(edge, edge + beyond)).permute(2, 0, 1)[None].float() / 127.5 - 1
    together = enlarge(levels).clamp(-1, 1)
    alone = enlarge(levels[..., :edge].contiguous()).clamp(-1, 1)
    off = (together[..., : alone.shape[-1]] - alone).abs().amax(dim=(0, 1, 2))
    wrong = (off.flip(0) >= HALF_A_LEVEL).nonzero()
    return int(wrong.max()) + 1 if len(wrong) else 0


def overlap_for(reach: int, usual: int, step: int) -> int:
    """The overlap with which pixels that one tile shows alone lie `reach` px from its edge, in multiples of
    `step`; not less than `usual`.

    With a ramp of `MAX_RAMP` px in the middle of an overlap, they lie half of both from it.
    """
    return max(usual, math.ceil((2 * reach - MAX_RAMP) / step) * step)


def _mirrored(height: int, width: int) -> npt.NDArray[np.uint8]:
    """The photograph, continued by its mirror image; (height, width, 3)."""
    found = photo()
    more = [(0, max(0, wanted - side)) for wanted, side in zip((height, width), found.shape, strict=False)]
    return np.pad(found, (*more, (0, 0)), mode="symmetric")[:height, :width].copy()


def _as_tensor(weights: FloatArray) -> Tensor:
    return torch.from_numpy(weights)


def _canvas(height: int, width: int) -> Tensor:
    """A part of the photograph, enlarged as what a stage sees is; (1, 3, height, width) in [-1, 1]."""
    rows, columns = math.ceil(height / ENLARGED), math.ceil(width / ENLARGED)
    levels = torch.from_numpy(photo()[:rows, :columns].copy()).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(levels, size=(height, width), mode="bilinear") * 2 - 1
