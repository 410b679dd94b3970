"""Between the stages (paper section 3.8, Eq. 10 and 11)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def upsampling(m: Tensor, N: int) -> Tensor:
    """y_L = Upsampling(m, N), bilinear: (B, C, H, W) to (B, C, N H, N W). Implements Eq. (10)."""
    return F.interpolate(m, scale_factor=N, mode="bilinear", align_corners=False)


def chunking(y: Tensor, R: int) -> Iterator[Tensor]:
    """Cut (B, C, N R, N R) into N^2 chunks (B, C, R, R), row by row. Implements Eq. (11)."""
    height, width = y.shape[-2:]
    if height % R or width % R:
        raise ValueError(f"a picture of {height} x {width} px does not divide into chunks of {R} px")
    for top in range(0, height, R):
        for left in range(0, width, R):
            yield y[..., top : top + R, left : left + R]


def joining(chunks: list[Tensor], N: int) -> Tensor:
    """Undo `chunking`: N^2 chunks (B, C, R, R), row by row, to (B, C, N R, N R)."""
    rows = [torch.cat(chunks[row * N : (row + 1) * N], dim=-1) for row in range(N)]
    return torch.cat(rows, dim=-2)
