"""`tudsr train base`: the `nano` base, trained from nothing as a one-step restorer through Eq. (2).

Stable Diffusion brings a prior that the LoRAs then bend; `nano` has to be given one first. All weights of the
UNet, and of a decoder that has any, are trained at both timesteps: at t_1 on degraded pictures enlarged by M,
at t_2 on clean but soft ones enlarged by N, which is what the second stage will see.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from tudsr_runtime.errors import TrainingError
from tudsr_train.bases.nano import create_base
from tudsr_train.bases.prompt import PROMPT_FILE
from tudsr_train.config import BaseConfig
from tudsr_train.data.pairs import PairDataset
from tudsr_train.foreign import misread
from tudsr_train.generator import Generator
from tudsr_train.run.loop import Loss
from tudsr_train.training import Training


class BasePairs(PairDataset):
    """Pairs of t_1 or of t_2, by the number of their batch, so that a batch has one timestep."""

    def __init__(
        self, config: BaseConfig, degraded: PairDataset, after_stage1: PairDataset, length: int
    ) -> None:
        self.config, self.degraded, self.after_stage1 = config, degraded, after_stage1
        self.length = length

    def __len__(self) -> int:
        return self.length

    def timestep(self, batch: int) -> int:
        late = np.random.default_rng([self.config.seed, batch, 0x7]).random() < self.config.t2_prob
        return self.config.t2 if late else self.config.t1

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        if self.timestep(number // self.config.optimization.batch_size) == self.config.t2:
            return self.after_stage1[number]
        return self.degraded[number]


def _trained(G: Generator) -> dict[str, nn.Parameter]:
    """Every weight of the UNet and of the autoencoder, by name; rows of pixels that pass get no gradient."""
    for parameter in (G.unet.conv_out.weight, G.unet.conv_out.bias) if G.passed_channels else ():
        parameter.register_hook(functools.partial(_without_rows, G.passed_channels))
    return {**dict(G.unet.named_parameters()), **dict(G.vae.named_parameters(prefix="vae"))}


def _without_rows(count: int, gradient: Tensor) -> Tensor:
    kept = gradient.clone()
    kept[:count] = 0
    return kept


def _require_same(G: Generator, fresh: Generator, start: str) -> None:
    """A base to go on from must have the network of this configuration; its prompt is kept."""
    found, wanted = (
        [
            *((name, p.shape) for part in (of.unet, of.vae) for name, p in part.named_parameters()),
            of.vae.config.get("margin"),
        ]
        for of in (G, fresh)
    )
    if found != wanted:
        raise TrainingError(f"start: {start} is no base of this `model`")


class Base(Training[BaseConfig]):
    """A run that makes a base."""

    result_file = PROMPT_FILE
    pairs: BasePairs

    def prepare(self) -> tuple[Generator, dict[str, nn.Parameter], dict[str, str]]:
        config = self.config
        with tempfile.TemporaryDirectory() as fresh, misread("model: no base can be made", TrainingError):
            create_base(Path(fresh), config.model, config.seed)
            G = Generator.load(config.start or fresh)
            if config.start:
                _require_same(G, Generator.load(fresh), config.start)
        G.requires_grad_(True).train()
        return G, _trained(G), {"start": G.base_sha256} if config.start else {}

    def training_pairs(self, length: int) -> BasePairs:
        config, seed = self.config, self.config.seed
        late = replace(self.task, reductions=(config.N,))
        degraded = self.draw(config.data, self.task, config.degradation, seed, length)
        return BasePairs(config, degraded, self.draw(config.data, late, config.mild, seed, length), length)

    def algorithm(self, number: int, x_L: Tensor, x_H: Tensor) -> Iterator[Loss]:
        """Yield L_G of one batch, at the timestep of its number."""
        x_hat = self.gan.G(x_L, self.pairs.timestep(number))
        yield self.gan.L_G(x_hat, x_H, [])

    def columns(self, x_L: Tensor) -> dict[str, Tensor]:
        return {"input": x_L, "base": self.gan.G(x_L, self.config.t1).x}

    def write(self, folder: Path) -> None:
        """Write the base in the diffusers layout: what was trained over the untrained weights."""
        if self.config.start:
            shutil.copytree(self.config.start, folder, dirs_exist_ok=True)
        else:
            create_base(folder, self.config.model, self.config.seed)
        G = self.gan.generator
        G.unet.save_pretrained(folder / "unet")
        if any(True for _ in G.vae.parameters()):
            G.vae.save_pretrained(folder / "vae")


def train_base(config: BaseConfig, out: Path, resume: str) -> None:
    """Train the base and write it to `out`, in the diffusers layout; the run's state is in `out`.run."""
    Base(config, out).run(resume)
