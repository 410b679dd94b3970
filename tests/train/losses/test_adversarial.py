"""Eq. (6) and (7): values that are known by hand, and the D3SR form."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tudsr_train.losses.adversarial import D3SR, TUDSR, AdversarialLoss


def _levels(logit: float, sides: tuple[int, ...] = (8, 8, 8)) -> list[torch.Tensor]:
    return [torch.full((1, 1, side, side), logit) for side in sides]


def test_an_untrained_discriminator_gives_log_2_everywhere() -> None:
    real, fake = TUDSR.discriminator(_levels(0.0), _levels(0.0))
    for term in (TUDSR.generator(_levels(0.0)), real, fake):
        assert term.item() == pytest.approx(math.log(2), abs=1e-6)


def test_the_equilibrium_of_the_soft_labels() -> None:
    # D(x) = label_real p / (p + q) = 0.4 where real and generated pictures are equally likely
    logits = [torch.full((1, 1, 4, 4), math.log(0.4 / 0.6), requires_grad=True)]
    real, fake = TUDSR.discriminator(logits, logits)
    assert TUDSR.generator(logits).item() == pytest.approx(0.8352, abs=1e-4)
    assert real.item() == pytest.approx(0.8352, abs=1e-4)
    assert fake.item() == pytest.approx(0.5108, abs=1e-4)
    (gradient,) = torch.autograd.grad(real + fake, logits)
    assert gradient.abs().max() < 1e-6


def test_soft_labels_have_a_floor() -> None:
    logit = math.log(0.8 / 0.2)
    assert TUDSR.generator(_levels(logit)).item() == pytest.approx(0.5004, abs=1e-4)
    for other in (logit - 0.5, logit + 0.5, 12.0):
        assert TUDSR.generator(_levels(other)) > TUDSR.generator(_levels(logit))


def test_every_level_weighs_the_same_whatever_its_size() -> None:
    coarse, fine = torch.full((1, 1, 1, 1), -2.0), torch.full((1, 1, 16, 16), 3.0)
    target = {
        logits: F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))
        for logits in (coarse, fine)
    }
    expected = (target[coarse] + target[fine]) / 2
    assert AdversarialLoss().discriminator([coarse], [coarse, fine])[1].item() == pytest.approx(
        expected.item()
    )


def test_d3sr_is_the_softplus_form() -> None:
    real, fake = torch.randn(2, 3, 1, 5, 7)
    assert torch.allclose(D3SR.generator([fake]), F.softplus(-fake).mean())
    l_real, l_fake = D3SR.discriminator([real], [fake])
    assert torch.allclose(l_real, F.softplus(-real).mean())
    assert torch.allclose(l_fake, F.softplus(fake).mean())


def test_half_precision_logits_lose_nothing_on_the_way() -> None:
    logits = torch.randn(1, 1, 32, 32)
    half = logits.bfloat16()
    assert TUDSR.generator([half]).dtype == torch.float32
    assert torch.equal(TUDSR.generator([half]), TUDSR.generator([half.float()]))
    assert TUDSR.generator([logits.double()]).dtype == torch.float64
