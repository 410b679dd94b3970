"""How arithmetic is done in training: float32 weights, bfloat16 autocast, an optional compiler, threads."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from tudsr_runtime.errors import TrainingError
from tudsr_train.config import Optimization
from tudsr_train.generator import Generator


def autocast(optimization: Optimization) -> AbstractContextManager[None]:
    """bfloat16 where the configuration says so; losses stay outside, in float32."""
    if optimization.precision not in ("bf16", "fp32"):
        raise TrainingError(
            f"precision {optimization.precision!r} is not supported; bf16 and fp32 are "
            "(fp16 would lose the gradients that accumulation adds up)"
        )
    return torch.autocast("cpu", torch.bfloat16, enabled=optimization.precision == "bf16")


def prepare(generator: Generator, optimization: Optimization) -> None:
    """Lay the UNet out channels-last, set the threads, and compile it if asked to."""
    if optimization.threads:
        torch.set_num_threads(optimization.threads)
    generator.unet.to(memory_format=torch.channels_last)
    if optimization.compile:
        generator.unet.compile(dynamic=False)
