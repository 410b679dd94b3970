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

from tudsr_runtime.metrics.niqe import BLOCK, niqe
from tudsr_train.data.pairs import PairDataset

GAP = 8
"""White pixels between the pictures of a grid."""


@dataclass
class Grid:
    """Restores a fixed set of pairs; draws nothing from torch, and leaves no gradient."""

    open: Callable[[], PairDataset]
    """Opens the pairs, when they are first needed: not those of training, and few; all of them are shown."""
    columns: Callable[[Tensor], dict[str, Tensor]]
    """x_L, a batch of one, to results by name, in the order of the stages."""
    device: torch.device
    distance: tuple[str, Callable[[Tensor, Tensor], Tensor]] | None = None
    """A learned distance, such as DISTS, with the name that its figure gets: two (1, 3, H, W) in [0, 1]."""

    @functools.cached_property
    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        pairs = self.open()
        numbers = range(len(pairs))  # type: ignore[arg-type]
        return [tuple(x[None].to(self.device) for x in pairs[number]) for number in numbers]  # type: ignore[misc]

    @torch.no_grad()
    def __call__(self, _step: int) -> tuple[NDArray[np.uint8], dict[str, float]]:
        """The grid (H, W, 3), and each result's figures: PSNR (dB, over RGB), NIQE where it is large enough
        for it, and the learned distance."""
        rows, errors, means = [], dict[str, list[float]](), dict[str, list[float]]()
        for number, (x_L, x_H) in enumerate(self._pairs):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number)
                results = self.columns(x_L)
            side = x_H.shape[-2:]
            shown = [_enlarged(x, side) for x in (x_L, *results.values(), x_H)]
            rows.append(_beside(shown))
            for name, result in zip(results, shown[1:-1], strict=True):
                errors.setdefault(name, []).append(float(F.mse_loss(result, x_H)) / 4)
                for metric, value in self._figures(result, x_H).items():
                    means.setdefault(f"{metric} {name}", []).append(value)
        figures = {f"PSNR {name}": -10 * float(np.log10(np.mean(of))) for name, of in errors.items()}
        return np.concatenate(rows), figures | {name: float(np.mean(of)) for name, of in means.items()}

    def _figures(self, result: Tensor, x_H: Tensor) -> dict[str, float]:
        found, sides = {}, sorted(result.shape[-2:])
        if sides[0] >= BLOCK and sides[1] >= 2 * BLOCK:
            # of what would be saved: whole levels
            found["NIQE"] = niqe(_levels(result))
        if self.distance is not None:
            name, distance = self.distance
            both = ((x.float().clamp(-1, 1) + 1) / 2 for x in (result, x_H))
            found[name] = float(distance(*both).mean())
        return found


def _enlarged(x: Tensor, side: tuple[int, ...]) -> Tensor:
    if x.shape[-2:] == side:
        return x
    return F.interpolate(x, size=side, mode="bilinear", align_corners=False)


def _beside(pictures: list[Tensor]) -> NDArray[np.uint8]:
    """Pictures (1, 3, H, W) in [-1, 1] in a row, with white between and below them."""
    padded = [F.pad(x, (0, GAP, 0, GAP), value=1.0) for x in pictures]
    return _levels(torch.cat(padded, dim=-1))


def _levels(x: Tensor) -> NDArray[np.uint8]:
    """(1, 3, H, W) in [-1, 1] to (H, W, 3)."""
    row = x[0].movedim(0, -1).float().clamp(-1, 1)
    levels: NDArray[np.uint8] = ((row + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
    return levels
