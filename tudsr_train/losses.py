"""What G is trained to make small (paper section 3.6), so far as it needs no downloaded weights.

Images are (B, 3, H, W) in [-1, 1]; every loss is a float32 scalar.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SOBEL_X = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of L_G (Eq. 8), named after the terms: the paper only numbers its lambdas."""

    mae: float = 1.0
    """lambda_3: mean absolute error."""
    mse: float = 0.0
    """Mean squared error; not in the paper. It is what PSNR measures."""
    edges: float = 0.0
    """Mean absolute error of Sobel magnitudes: Eq. (5)'s edge term without its learned distance."""


def sobel(x: Tensor) -> Tensor:
    """S(x) of Eq. (5): gradient magnitude (B, 1, H, W) of x's channel mean in [0, 1], zero-padded."""
    gray = (x.mean(1, keepdim=True) + 1) / 2
    kernel_x = torch.tensor(SOBEL_X, device=x.device, dtype=x.dtype)
    gradient = F.conv2d(gray, torch.stack([kernel_x, kernel_x.T])[:, None], padding=1)
    return (gradient.square().sum(1, keepdim=True) + 1e-6).sqrt()


def generator_loss(x_hat: Tensor, x_H: Tensor, weights: LossWeights) -> tuple[Tensor, dict[str, float]]:
    """L_G of Eq. (8) without the terms that need pretrained networks; and each term's value, for the log."""
    x_hat = x_hat.to(x_H.dtype)
    terms: dict[str, tuple[float, Tensor]] = {}
    if weights.mae:
        terms["mae"] = (weights.mae, F.l1_loss(x_hat, x_H))
    if weights.mse:
        terms["mse"] = (weights.mse, F.mse_loss(x_hat, x_H))
    if weights.edges:
        terms["edges"] = (weights.edges, F.l1_loss(sobel(x_hat), sobel(x_H)))
    loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
    return loss, {name: value.item() for name, (_, value) in terms.items()}
