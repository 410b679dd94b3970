"""`tudsr train base`: the `nano` base, trained from nothing as a one-step restorer through Eq. (2).

Stable Diffusion brings a prior that the LoRAs then bend; `nano` has to be given one first. All UNet weights
are trained at both timesteps: at t_1 on degraded pictures enlarged by M, at t_2 on clean but soft ones
enlarged by N, which is what the second stage will see.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from tudsr_runtime.atomic import atomic_dir
from tudsr_runtime.errors import TrainingError
from tudsr_train.config import BaseConfig
from tudsr_train.data import Pairs, Task, synthetic_pool
from tudsr_train.generator import PROMPT_FILE, Generator
from tudsr_train.loop import Loss
from tudsr_train.nano import create_base
from tudsr_train.session import Session


class BasePairs(Pairs):
    """Pairs of t_1 or of t_2, by the number of their batch, so that a batch has one timestep."""

    def __init__(self, config: BaseConfig, length: int) -> None:
        task = Task(config.R, config.M, config.R)
        super().__init__(
            synthetic_pool(config.data), task, config.softness, config.degradation, config.seed, length
        )
        self.config = config
        late = replace(task, reductions=(config.N,))
        self.after_stage1 = Pairs(self.pool, late, config.softness, config.mild, config.seed, length)

    def timestep(self, batch: int) -> int:
        late = np.random.default_rng([self.config.seed, batch, 0x7]).random() < self.config.t2_prob
        return self.config.t2 if late else self.config.t1

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        if self.timestep(number // self.config.optimization.batch_size) == self.config.t2:
            return self.after_stage1[number]
        return super().__getitem__(number)


def train_base(config: BaseConfig, out: Path, resume: str) -> None:
    """Train the base and write it to `out`, in the diffusers layout; the run's state is in `out`.run."""
    base = Base(config, out)
    base.session.go(base.loop, base.pairs, base.algorithm, resume)
    if base.session.accelerator.is_main_process:
        with atomic_dir(out, overwrite=True, own=PROMPT_FILE) as folder:
            if config.start:
                shutil.copytree(config.start, folder, dirs_exist_ok=True)
            else:
                create_base(folder, config.model, config.seed)
            base.gan.generator.unet.save_pretrained(folder / "unet")
    base.session.finish()


def check_base(config: BaseConfig, out: Path) -> list[str]:
    """What `Session.check` finds: data, weights, losses and memory of one batch. Writes nothing."""
    base = Base(config, out)
    return base.session.check(base.loop, base.pairs, base.algorithm)


def _require_same(G: Generator, fresh: Generator, start: str) -> None:
    """A base to go on from must have the network of this configuration; its prompt is kept."""
    found, wanted = (
        [*((name, p.shape) for name, p in of.unet.named_parameters()), of.vae.config.get("margin")]
        for of in (G, fresh)
    )
    if found != wanted:
        raise TrainingError(f"start: {start} is no base of this `model`")


class Base:
    """Everything that a run needs, from its configuration."""

    def __init__(self, config: BaseConfig, out: Path) -> None:
        self.config, self.session = config, Session(config, out)
        with tempfile.TemporaryDirectory() as fresh:
            create_base(Path(fresh), config.model, config.seed)
            G = Generator.load(config.start or fresh)
            if config.start:
                _require_same(G, Generator.load(fresh), config.start)
        G.unet.requires_grad_(True).train()
        self.gan = self.session.adversaries(G)
        parents = {"start": G.base_sha256} if config.start else {}
        self.loop = self.session.loop(self.gan, dict(G.unet.named_parameters()), parents)
        with self.session.accelerator.main_process_first():
            self.pairs = BasePairs(config, self.loop.batches * config.optimization.batch_size)

    def algorithm(self, number: int, x_L: Tensor, x_H: Tensor) -> Iterator[Loss]:
        """Yield L_G of one batch, at the timestep of its number."""
        x_hat = self.gan.G(x_L, self.pairs.timestep(number))
        yield self.gan.L_G(x_hat, x_H, [])
