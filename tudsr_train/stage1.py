"""`tudsr train stage1`: the paper's Algorithm 1. A LoRA at R-resolution."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from tudsr_train.config import Stage1Config
from tudsr_train.gan import Adversaries
from tudsr_train.generator import Generator
from tudsr_train.run.loop import Loss
from tudsr_train.training import AdapterTraining


def algorithm_1(gan: Adversaries, x_L: Tensor, x_H: Tensor, t_1: int) -> Iterator[Loss]:
    """Yield L_G, then L_D of one pair. Implements Algorithm 1 for (theta_1, phi_1).

    Each `yield` is a Backward: whoever iterates runs it, and updates the network that the loss names, before
    asking for the next loss. Without a discriminator there is L_G alone.

    Args:
        x_L, x_H: (B, 3, R, R) in [-1, 1].
    """
    x_hat = gan.G(x_L, t_1)
    with gan.D_frozen():
        logits_gen = gan.D(x_hat)
        yield gan.L_G(x_hat, x_H, logits_gen)  # theta_1 <- Backward(L_G)
    if gan.discriminator:
        logits_fake = gan.D(x_hat.detach())
        logits_real = gan.D(gan.real(x_H))
        yield gan.L_D(logits_fake, logits_real)  # phi_1 <- Backward(L_D)


class Stage1(AdapterTraining[Stage1Config]):
    """A run of stage 1."""

    def prepare(self) -> tuple[Generator, dict[str, nn.Parameter], dict[str, str]]:
        G = self.load_base()
        return G, self.add_adapter(G, "stage1"), {"base": G.base_sha256}

    def algorithm(self, number: int, x_L: Tensor, x_H: Tensor) -> Iterator[Loss]:  # noqa: ARG002
        return algorithm_1(self.gan, x_L, x_H, self.config.t1)

    def columns(self, x_L: Tensor) -> dict[str, Tensor]:
        return {"stage 1": self.gan.G(x_L, self.config.t1).x}

    def write(self, folder: Path) -> None:
        self.save(folder, 1, self.config.t1, max(self.config.M))


def train_stage1(config: Stage1Config, out: Path, resume: str) -> None:
    """Train the stage-1 adapter and write it to `out`; the run's state lives in `out` + ".run"."""
    Stage1(config, out).run(resume)
