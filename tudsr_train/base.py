"""`tudsr train base`: the `nano` base, trained from nothing as a one-step restorer through Eq. (2).

Stable Diffusion brings a prior that the LoRAs then bend; `nano` has to be given one first. All UNet weights
are trained at both timesteps: at t_1 on degraded pictures enlarged by M, at t_2 on clean but soft ones
enlarged by N, which is what the second stage will see.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from tudsr_runtime.atomic import atomic_dir
from tudsr_train.config import BaseConfig
from tudsr_train.data import Pairs, Task, synthetic_pool
from tudsr_train.generator import Generator
from tudsr_train.loop import Loop, Loss
from tudsr_train.losses import generator_loss
from tudsr_train.nano import create_base
from tudsr_train.precision import autocast, prepare


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
    run = out.with_name(out.name + ".run")
    run.mkdir(parents=True, exist_ok=True)
    with atomic_dir(run / "start", overwrite=True) as start:
        create_base(start, config.model, config.seed)
    G = Generator.load(run / "start")
    G.unet.requires_grad_(True).train()
    prepare(G, config.optimization)
    loop = Loop(run, dict(G.unet.named_parameters()), config.optimization)
    loop.resume(resume)
    pairs = BasePairs(config, loop.batches * config.optimization.batch_size)

    def restore(number: int, x_L: Tensor, x_H: Tensor) -> Iterator[Loss]:
        with autocast(config.optimization):
            x_hat = G(x_L, pairs.timestep(number))
        yield generator_loss(x_hat, x_H, config.loss)

    loop.run(pairs, restore)
    with atomic_dir(out, overwrite=True) as folder:
        create_base(folder, config.model, config.seed)
        G.unet.save_pretrained(folder / "unet")
