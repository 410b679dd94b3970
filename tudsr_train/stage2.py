"""`tudsr train stage2`: the paper's Algorithm 2. A second LoRA at NR-resolution, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tudsr_runtime.atomic import atomic_dir
from tudsr_train.adapters import (
    AdapterRecord,
    adapter_parameters,
    add_adapter,
    load_adapter,
    prompt_sha256,
    save_adapter,
)
from tudsr_train.chunking import chunking, upsampling
from tudsr_train.config import Stage2Config
from tudsr_train.data import Task
from tudsr_train.generator import Generator
from tudsr_train.loop import Loop, Loss
from tudsr_train.losses import generator_loss
from tudsr_train.precision import autocast, prepare
from tudsr_train.sources import training_pairs


def algorithm_2(G: Generator, x_L: Tensor, y_H: Tensor, t1: int, config: Stage2Config) -> Iterator[Loss]:
    """Yield one loss per chunk. Implements Algorithm 2 for theta_2, without a discriminator.

    Whoever iterates runs the backward of a chunk before the next one is computed, so that the graph of one
    chunk at most is alive: peak memory is stage 1's, not N^2 times it.

    Args:
        x_L: (B, 3, R, R) in [-1, 1].
        y_H: (B, 3, N R, N R) in [-1, 1].
    """
    G.unet.set_adapter("stage1")
    with torch.no_grad(), autocast(config.optimization):
        m = G(x_L, t1)
    y_L = upsampling(m.to(y_H.dtype), config.N)
    G.unet.set_adapter("stage2")
    for y_L_i, y_H_i in zip(chunking(y_L, config.R), chunking(y_H, config.R), strict=True):
        with autocast(config.optimization):
            y_hat_i = G(y_L_i, config.t2)
        yield generator_loss(y_hat_i, y_H_i, config.loss)


def train_stage2(config: Stage2Config, out: Path, resume: str) -> None:
    """Train the stage-2 adapter behind a frozen stage 1 and write it to `out`."""
    torch.manual_seed(config.seed)
    G = Generator.load(config.base)
    stage1 = load_adapter(G, config.stage1, "stage1")
    add_adapter(G, "stage2", config.lora.rank, config.lora.target_modules)
    prepare(G, config.optimization)
    theta_2 = adapter_parameters(G, "stage2")
    loop = Loop(out.with_name(out.name + ".run"), theta_2, config.optimization, losses_per_pair=config.N**2)
    loop.resume(resume)
    pairs = training_pairs(
        config.data,
        Task(config.N * config.R, tuple(M * config.N for M in config.M), config.R),
        config.softness,
        config.degradation,
        config.seed,
        loop.batches * config.optimization.batch_size,
        loop.folder,
    )
    t1 = stage1.timestep if stage1 else 200
    loop.run(pairs, lambda _, x_L, y_H: algorithm_2(G, x_L, y_H, t1, config))
    record = AdapterRecord(2, config.t2, config.N, G.base_sha256, prompt_sha256(G.prompt_embeds))
    with atomic_dir(out, overwrite=True) as folder:
        save_adapter(G, "stage2", folder, record)
