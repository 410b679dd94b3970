"""G and D, and what they learn from (paper section 3.6): the symbols of Algorithms 1 and 2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tudsr_train.config import Optimization
from tudsr_train.discriminators.base import Discriminator
from tudsr_train.generator import Generator
from tudsr_train.losses.adversarial import AdversarialLoss
from tudsr_train.losses.reconstruction import Losses
from tudsr_train.run.loop import Loss
from tudsr_train.run.precision import autocast, autoencoder_cast


@dataclass(frozen=True)
class PictureAndLatent:
    """A picture that D may look at, as pixels or as a latent."""

    x: Tensor
    """(B, 3, R, R) in [-1, 1]."""
    z: Tensor | None
    """The picture's scaled latent (B, C, h, w); None where D looks at pixels and nobody has computed it."""

    def detach(self) -> PictureAndLatent:
        """The same picture, out of the graph."""
        return PictureAndLatent(self.x.detach(), None if self.z is None else self.z.detach())


@dataclass
class Adversaries:
    """The two networks of a stage and its losses. Without a D it is a plain regression."""

    generator: Generator
    discriminator: Discriminator | None
    losses: Losses
    adversarial: AdversarialLoss
    optimization: Optimization
    posterior: str = "sample"
    """sample or mode: which latent of E's distribution is taken."""

    def G(self, x_L: Tensor, t: int) -> PictureAndLatent:
        """G(x_L, t, c) of Eq. (2), with z_H beside x_H."""
        with autocast(self.optimization, x_L.device):
            z = self.generator.denoise(self._encode(x_L), t)
            with autoencoder_cast(self.optimization, x_L.device):
                x = self.generator.decode(z).clamp(-1, 1)
        return PictureAndLatent(x.to(x_L.dtype), z.to(x_L.dtype))

    def real(self, x_H: Tensor) -> PictureAndLatent:
        """x_H as D sees it."""
        if self.discriminator is None or self.discriminator.space == "pixel":
            return PictureAndLatent(x_H, None)
        with torch.no_grad(), autocast(self.optimization, x_H.device):
            return PictureAndLatent(x_H, self._encode(x_H).to(x_H.dtype))

    def _encode(self, x: Tensor) -> Tensor:
        with autoencoder_cast(self.optimization, x.device):
            return self.generator.encode(x, sample=self.posterior == "sample")

    def D(self, picture: PictureAndLatent) -> list[Tensor]:
        """{logit^l} of Eq. (4), none without a D."""
        if self.discriminator is None:
            return []
        sample = picture.x if self.discriminator.space == "pixel" else picture.z
        logits: list[Tensor] = self.discriminator(sample)
        return logits

    @contextlib.contextmanager
    def D_frozen(self) -> Iterator[None]:
        """D*: inside, a backward reaches the picture and leaves no gradient in D."""
        with self.discriminator.frozen() if self.discriminator else contextlib.nullcontext():
            yield

    def L_G(self, x_hat: PictureAndLatent, x_H: Tensor, logits_gen: list[Tensor]) -> Loss:
        """lambda_1 L_ea-dists + lambda_2 L_gen + lambda_3 L_mae, Eq. (8)."""
        loss, terms = self.losses.reconstruction(x_hat.x, x_H)
        if logits_gen:
            L_gen = self.adversarial.generator(logits_gen)
            loss = loss + self.losses.weights.gan * L_gen
            terms |= {"L_gen": L_gen.item(), "logit_gen": _mean(logits_gen)}
        return Loss("generator", loss, terms | {"L_G": loss.item()})

    def L_D(self, logits_fake: list[Tensor], logits_real: list[Tensor]) -> Loss:
        """lambda_2 (L_real + L_fake), Eq. (9)."""
        L_real, L_fake = self.adversarial.discriminator(logits_real, logits_fake)
        loss = self.losses.weights.gan * (L_real + L_fake)
        terms = {"L_D": loss.item(), "L_real": L_real.item(), "L_fake": L_fake.item()}
        terms |= {"logit_real": _mean(logits_real), "logit_fake": _mean(logits_fake)}
        return Loss("discriminator", loss, terms)


def _mean(logits: list[Tensor]) -> float:
    return torch.stack([level.detach().float().mean() for level in logits]).mean().item()
