"""Optimizers, and the learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from tudsr_runtime.errors import TrainingError

if TYPE_CHECKING:
    from tudsr_train.config import Optimization

LOWEST = 0.01
"""Share of the learning rate that the falling schedules end with."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda progress: 1 - (1 - LOWEST) * progress,
    "cosine": lambda progress: LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * progress)) / 2,
    "polynomial": lambda progress: LOWEST + (1 - LOWEST) * (1 - progress) ** 2,
}
"""Share of the learning rate, by the share of the steps after the warm-up that is done."""


def lr_factor(step: int, optimization: Optimization) -> float:
    """Share of the learning rate at a step: linear warm-up, then one of `SCHEDULES`.

    A function of the step alone: there is nothing to save, and the number of processes does not enter.
    """
    if step < optimization.warmup:
        return (step + 1) / optimization.warmup
    progress = (step - optimization.warmup) / max(1, optimization.steps - optimization.warmup)
    return SCHEDULES[optimization.schedule](min(1.0, progress))


def make_optimizer(
    parameters: Iterable[nn.Parameter], lr: float, optimization: Optimization
) -> torch.optim.Optimizer:
    """AdamW, in float32 or with 8-bit state. TrainingError where bitsandbytes is asked for and absent."""
    o = optimization
    if o.optimizer == "adamw":
        return torch.optim.AdamW(
            list(parameters), lr=lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay
        )
    if o.optimizer != "adamw8bit":
        raise TrainingError(f"optimizer {o.optimizer!r} is not known; adamw and adamw8bit are")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise TrainingError(
            "optimizer adamw8bit needs the package bitsandbytes, which is not installed",
            hint="pip install bitsandbytes, or use optimizer: adamw",
        ) from error
    return AdamW8bit(list(parameters), lr=lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)
