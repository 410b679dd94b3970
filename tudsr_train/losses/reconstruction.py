"""What G is trained to make small (paper section 3.6): Eq. (5) and (8) without their adversarial term.

Images are (B, 3, H, W) in [-1, 1]; every loss is a float32 scalar.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tudsr_train.losses.dists import DISTS, DistsConfig

FAINTEST = 1 / 255
"""Half a level of 8 bits: differences far below it are not seen as a pattern."""
SOBEL_X = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of L_G (Eq. 8), named after the terms: the paper only numbers its lambdas.

    The paper has ea_dists 5, gan 0.5, mae 0.5 (section 3.6.4); the defaults need no pretrained network.
    """

    ea_dists: float = 0.0
    """lambda_1: edge-aware DISTS, Eq. (5)."""
    gan: float = 0.0
    """lambda_2: L_gen, and L_D's own weight (Eq. 9); needs a discriminator."""
    mae: float = 1.0
    """lambda_3: mean absolute error."""
    mse: float = 0.0
    """Mean squared error; not in the paper. It is what PSNR measures."""
    edges: float = 0.0
    """Mean absolute error of Sobel magnitudes: Eq. (5)'s edge term without its learned distance."""
    lattice: float = 0.0
    """Differences that lie on a lattice of 4 px, as the pixels of an enlarged picture do. Not the paper's."""


def sobel(x: Tensor) -> Tensor:
    """S(x) of Eq. (5): gradient magnitude (B, 1, H, W) of x's channel mean in [0, 1], zero-padded."""
    gray = (x.mean(1, keepdim=True) + 1) / 2
    kernel_x = torch.tensor(SOBEL_X, device=x.device, dtype=x.dtype)
    gradient = F.conv2d(gray, torch.stack([kernel_x, kernel_x.T])[:, None], padding=1)
    return (gradient.square().sum(1, keepdim=True) + 1e-6).sqrt()


def ea_dists(dists: DISTS, x_hat: Tensor, x_H: Tensor) -> Tensor:
    """L_ea-dists of Eq. (5): the distance of two pictures plus that of their edges, a scalar.

    Pictures and edges go through VGG16 as one batch: its deep layers, of few cells, cost little more for it.
    """
    plain, edges = dists(_and_edges(x_hat), _and_edges(x_H)).chunk(2)
    return (plain + edges).mean()


def _and_edges(x: Tensor) -> Tensor:
    """(2 B, 3, H, W) of x (B, 1 or 3, H, W) in [-1, 1]: the pictures in [0, 1], then their `sobel`."""
    return torch.cat([part.expand(-1, 3, -1, -1) for part in ((x + 1) / 2, sobel(x))])


def lattice(x_hat: Tensor, x_H: Tensor, period: int = 4) -> Tensor:
    """How differently x_hat's and x_H's gradients lie on a lattice of `period` px, a scalar.

    Differences of neighbours in four directions, relative to their mean in the surroundings and folded with
    `period` along both axes at once: what is compared is where they lie, not how large they are, faint
    hatching of a flat area counts as much as dots in fur, and stripes along a diagonal, which averages along
    rows and columns cannot see, count too.
    """
    return (_folded(x_hat, period) - _folded(x_H, period)).square().sum(1).mean()


def _folded(x: Tensor, period: int) -> Tensor:
    """(B, 4, period, period): phases of |differences| along x, y and both diagonals, 1 in the mean."""
    here, right, below = x[..., :-1, :-1], x[..., :-1, 1:], x[..., 1:, :-1]
    pairs = ((here, right), (here, below), (here, x[..., 1:, 1:]), (right, below))
    differences = torch.stack([(one - other).abs().mean(1) for one, other in pairs], 1)
    around = F.avg_pool2d(differences, 2 * period + 1, 1, period, count_include_pad=False)
    share = differences / (around + FAINTEST)
    height, width = (side // period * period for side in share.shape[-2:])
    cells = share[..., :height, :width].unflatten(-1, (-1, period)).unflatten(-3, (-1, period))
    phases = cells.mean((-4, -2))
    return phases / (phases.mean((-2, -1), keepdim=True) + 1e-6)


class Losses(nn.Module):
    """The terms of L_G (Eq. 8) that compare x_hat with x_H; L_gen comes from the discriminator."""

    def __init__(self, weights: LossWeights, dists: DISTS | None = None) -> None:
        super().__init__()
        if weights.ea_dists and dists is None:
            raise ValueError("the EA-DISTS term has a weight but no network")
        self.weights, self.dists = weights, dists

    @classmethod
    def build(cls, weights: LossWeights, config: DistsConfig) -> Losses:
        """Make them, on the CPU; DISTS is loaded only where its term has a weight.

        Raises TrainingError where its weights are absent.
        """
        return cls(weights, DISTS.load(config) if weights.ea_dists else None)

    def reconstruction(self, x_hat: Tensor, x_H: Tensor) -> tuple[Tensor, dict[str, float]]:
        """lambda_1 L_ea-dists + lambda_3 L_mae and what else has a weight; also each term, for the log."""
        w, x_hat = self.weights, x_hat.to(x_H.dtype)
        terms: dict[str, tuple[float, Tensor]] = {}
        if w.ea_dists and self.dists is not None:
            terms["ea_dists"] = (w.ea_dists, ea_dists(self.dists, x_hat, x_H))
        if w.mae:
            terms["mae"] = (w.mae, F.l1_loss(x_hat, x_H))
        if w.mse:
            terms["mse"] = (w.mse, F.mse_loss(x_hat, x_H))
        if w.edges:
            terms["edges"] = (w.edges, F.l1_loss(sobel(x_hat), sobel(x_H)))
        if w.lattice:
            terms["lattice"] = (w.lattice, lattice(x_hat, x_H))
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        return loss, {name: value.item() for name, (_, value) in terms.items()}
