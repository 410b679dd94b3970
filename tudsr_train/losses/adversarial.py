"""The adversarial losses (paper section 3.6, Eq. 6 and 7), on the logits of any discriminator.

Logits come as one tensor per level, of any shape; each loss is a mean over positions, then over levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """Binary cross-entropy towards a soft label for each of the three kinds of logits.

    Healthy values with the paper's labels: every term is 0.693 at first (logits 0) and near L_gen = L_real =
    0.835, L_fake = 0.511 at the equilibrium D = 0.4. L_gen and L_real cannot fall below 0.500; L_fake near 0
    with L_gen growing is a discriminator that has won.
    """

    label_gen: float = 0.8
    """What G wants D to say of its pictures (paper 3.6.2)."""
    label_real: float = 0.8
    """Paper 3.6.3."""
    label_fake: float = 0.0
    """Paper 3.6.3."""

    def generator(self, logits_gen: Sequence[Tensor]) -> Tensor:
        """L_gen of Eq. (6)."""
        return _bce(self.label_gen, logits_gen)

    def discriminator(
        self, logits_real: Sequence[Tensor], logits_fake: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(L_real, L_fake) of Eq. (7); Eq. (9) is L_D = lambda_2 (L_real + L_fake)."""
        return _bce(self.label_real, logits_real), _bce(self.label_fake, logits_fake)


TUDSR = AdversarialLoss()
D3SR = AdversarialLoss(label_gen=1.0, label_real=1.0, label_fake=0.0)
"""D3SR's losses, -log D and -log(1 - D), the softplus of -+ the logit: cross-entropy towards hard labels."""


def _bce(label: float, logits: Sequence[Tensor]) -> Tensor:
    """1/L sum over the L levels of BCE(label, logit^l), in float32 or better."""
    levels = [logit if logit.dtype == torch.float64 else logit.float() for logit in logits]
    return torch.stack(
        [F.binary_cross_entropy_with_logits(logit, torch.full_like(logit, label)) for logit in levels]
    ).mean()
