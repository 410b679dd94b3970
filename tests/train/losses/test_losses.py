"""The losses against hand-made values and a reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from tudsr_train.losses.reconstruction import Losses, LossWeights, lattice, sobel


def test_sobel_equals_the_reference_filters() -> None:
    x = torch.rand(2, 3, 16, 20) * 2 - 1
    gray = (x.mean(1).numpy() + 1) / 2
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
    for i in range(2):
        gx, gy = (correlate(gray[i], k, mode="constant") for k in (kernel, kernel.T))
        assert np.allclose(sobel(x)[i, 0].numpy(), np.sqrt(gx**2 + gy**2 + 1e-6), atol=1e-5)


def test_the_total_is_the_weighted_sum_of_its_terms() -> None:
    x_hat, x_H = torch.rand(2, 1, 3, 8, 8) * 2 - 1
    loss, terms = Losses(LossWeights(mae=0.5, mse=2.0, edges=0.25)).reconstruction(x_hat, x_H)
    assert terms["mae"] == pytest.approx(float((x_hat - x_H).abs().mean()))
    assert loss.item() == pytest.approx(
        0.5 * terms["mae"] + 2 * terms["mse"] + 0.25 * terms["edges"], rel=1e-5
    )
    assert float(Losses(LossWeights(edges=1.0)).reconstruction(x_H, x_H)[0]) == 0


def test_a_lattice_is_seen_wherever_it_lies_and_nothing_else_is() -> None:
    torch.manual_seed(0)
    x_H = torch.nn.functional.interpolate(torch.rand(2, 3, 24, 24), scale_factor=4, mode="bicubic") * 2 - 1
    x_H = x_H + 0.1 * torch.randn_like(x_H)
    dots = torch.zeros_like(x_H)
    dots[..., ::4, ::4] = 0.8
    assert lattice(x_H, x_H) == 0
    with_dots = [float(lattice(x_H + dots.roll(shift, 3), x_H)) for shift in range(4)]
    assert float(lattice(0.5 * x_H, x_H)) < 1e-4  # contrast is no lattice
    assert float(lattice(x_H + 0.1 * torch.randn_like(x_H), x_H)) < 0.1 * min(with_dots)
    assert max(with_dots) < 3 * min(with_dots)


def test_faint_hatching_of_a_flat_area_is_a_lattice() -> None:
    torch.manual_seed(0)
    x_H = 0.3 * torch.randn(2, 3, 96, 96)
    x_H[..., :48, :] = 0.01 * torch.randn(2, 3, 48, 96)
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    stripes = torch.where((rows + columns) % 4 < 2, 1.0, -1.0) * 2 / 255
    for hatched in (stripes, stripes.flip(-1)):
        assert float(lattice(x_H + hatched, x_H)) > 10 * float(
            lattice(x_H + 0.01 * torch.randn_like(x_H), x_H)
        )


def test_a_lattice_has_a_gradient_that_takes_it_away() -> None:
    x_H = torch.rand(1, 3, 32, 32) * 2 - 1
    x_hat = x_H.clone()
    x_hat[..., ::4, ::4] += 0.5
    before = float(lattice(x_hat, x_H))
    for _ in range(50):
        x_hat.requires_grad_()
        (gradient,) = torch.autograd.grad(lattice(x_hat, x_H), x_hat)
        x_hat = (x_hat - 0.5 * gradient / gradient.norm()).detach()
    assert float(lattice(x_hat, x_H)) < 0.5 * before
