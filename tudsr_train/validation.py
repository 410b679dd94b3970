"""Pictures to look at while a run goes on: LQ, what each stage makes of it, and HQ, a row per picture."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

GAP = 8
"""White pixels between the pictures of a grid."""


@dataclass
class Grid:
    """Restores a fixed set of pairs; draws nothing from torch, and leaves no gradient."""

    open: Callable[[], Dataset[tuple[Tensor, Tensor]]]
    """Opens the pairs, when they are first needed: not those of training, and few; all of them are shown."""
    columns: Callable[[Tensor], dict[str, Tensor]]
    """x_L, a batch of one, to results by name, in the order of the stages."""
    device: torch.device

    @functools.cached_property
    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        pairs = self.open()
        numbers = range(len(pairs))  # type: ignore[arg-type]
        return [tuple(x[None].to(self.device) for x in pairs[number]) for number in numbers]  # type: ignore[misc]

    @torch.no_grad()
    def __call__(self, _step: int) -> tuple[NDArray[np.uint8], dict[str, float]]:
        """The grid (H, W, 3), and each result's PSNR (dB, over RGB)."""
        rows, errors = [], dict[str, list[float]]()
        for number, (x_L, x_H) in enumerate(self._pairs):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number)
                results = self.columns(x_L)
            side = x_H.shape[-2:]
            shown = [_enlarged(x, side) for x in (x_L, *results.values(), x_H)]
            rows.append(_beside(shown))
            for name, result in zip(results, shown[1:-1], strict=True):
                errors.setdefault(name, []).append(float(F.mse_loss(result, x_H)) / 4)
        figures = {f"PSNR {name}": -10 * float(np.log10(np.mean(of))) for name, of in errors.items()}
        return np.concatenate(rows), figures


def _enlarged(x: Tensor, side: tuple[int, ...]) -> Tensor:
    if x.shape[-2:] == side:
        return x
    return F.interpolate(x, size=side, mode="bilinear", align_corners=False)


def _beside(pictures: list[Tensor]) -> NDArray[np.uint8]:
    """Pictures (1, 3, H, W) in [-1, 1] in a row, with white between and below them."""
    padded = [F.pad(x, (0, GAP, 0, GAP), value=1.0) for x in pictures]
    row = torch.cat(padded, dim=-1)[0].movedim(0, -1).float().clamp(-1, 1)
    levels: NDArray[np.uint8] = ((row + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    return levels
