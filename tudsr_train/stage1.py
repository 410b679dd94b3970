"""`tudsr train stage1`: the paper's Algorithm 1. A LoRA at R-resolution."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tudsr_runtime.atomic import atomic_dir
from tudsr_train.adapters import AdapterRecord, adapter_parameters, add_adapter, prompt_sha256, save_adapter
from tudsr_train.config import Stage1Config
from tudsr_train.data import Task
from tudsr_train.generator import Generator
from tudsr_train.loop import Loop, Loss
from tudsr_train.losses import generator_loss
from tudsr_train.precision import autocast, prepare
from tudsr_train.sources import training_pairs


def algorithm_1(G: Generator, x_L: Tensor, x_H: Tensor, config: Stage1Config) -> Iterator[Loss]:
    """Yield the one loss of a stage-1 step. Implements Algorithm 1 for theta_1, without a discriminator.

    x_L and x_H are (B, 3, R, R) in [-1, 1].
    """
    with autocast(config.optimization):
        x_hat = G(x_L, config.t1)
    yield generator_loss(x_hat, x_H, config.loss)


def train_stage1(config: Stage1Config, out: Path, resume: str) -> None:
    """Train the stage-1 adapter and write it to `out`; the run's state lives in `out` + ".run"."""
    torch.manual_seed(config.seed)
    G = Generator.load(config.base)
    add_adapter(G, "stage1", config.lora.rank, config.lora.target_modules)
    prepare(G, config.optimization)
    loop = Loop(out.with_name(out.name + ".run"), adapter_parameters(G, "stage1"), config.optimization)
    loop.resume(resume)
    pairs = training_pairs(
        config.data,
        Task(config.R, config.M, config.R),
        config.softness,
        config.degradation,
        config.seed,
        loop.batches * config.optimization.batch_size,
        loop.folder,
    )
    loop.run(pairs, lambda _, x_L, x_H: algorithm_1(G, x_L, x_H, config))
    record = AdapterRecord(1, config.t1, max(config.M), G.base_sha256, prompt_sha256(G.prompt_embeds))
    with atomic_dir(out, overwrite=True) as folder:
        save_adapter(G, "stage1", folder, record)
