"""`tudsr train stage1`: the paper's Algorithm 1. A LoRA at R-resolution."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from tudsr_train.config import Stage1Config
from tudsr_train.data.pairs import Task
from tudsr_train.gan import Adversaries
from tudsr_train.losses.dists_name import dists_name
from tudsr_train.run.loop import Loss
from tudsr_train.session import Session


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


def train_stage1(config: Stage1Config, out: Path, resume: str) -> None:
    """Train the stage-1 adapter and write it to `out`; the run's state lives in `out` + ".run"."""
    stage = Stage1(config, out)
    stage.session.go(stage.loop, stage.pairs, stage.algorithm, resume)
    stage.session.write_adapter(stage.loop, stage.gan.generator, 1, config.t1, max(config.M))


def check_stage1(config: Stage1Config, out: Path) -> list[str]:
    """What `Session.check` finds: data, weights, losses and memory of one pair. Writes nothing."""
    stage = Stage1(config, out)
    return stage.session.check(stage.loop, stage.pairs, stage.algorithm)


class Stage1:
    """Everything that a run of stage 1 needs, from its configuration."""

    def __init__(self, config: Stage1Config, out: Path) -> None:
        self.config, self.session = config, Session(config, out)
        G = self.session.generator(config)
        theta_1 = self.session.add_adapter(G, "stage1", config.lora, config.init)
        self.gan = self.session.adversaries(G)
        self.loop = self.session.loop(self.gan, theta_1, {"base": G.base_sha256})
        task = Task(config.R, config.M, config.R)
        self.pairs = self.session.pairs(config, task, self.loop)
        grid = self.session.grid(config, task, self._columns)
        if self.gan.losses.dists is not None:
            grid.distance = (dists_name(config.dists.vgg16), self.gan.losses.dists)
        self.loop.validate = grid
        self.loop.validate_every = config.validation.every
        self.loop.best = config.validation.best

    def algorithm(self, _number: int, x_L: Tensor, x_H: Tensor) -> Iterator[Loss]:
        """`algorithm_1` as the loop calls it."""
        return algorithm_1(self.gan, x_L, x_H, self.config.t1)

    def _columns(self, x_L: Tensor) -> dict[str, Tensor]:
        return {"stage 1": self.gan.G(x_L, self.config.t1).x}
