"""How arithmetic is done in training: float32 weights, bfloat16 autocast, an optional compiler, threads."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from tudsr_runtime.errors import TrainingError
from tudsr_runtime.machine import processors
from tudsr_train.config import Optimization
from tudsr_train.generator import Generator


def autocast(optimization: Optimization, device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 where the configuration says so; losses stay outside, in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=optimization.precision == "bf16")


def autoencoder_cast(optimization: Optimization, device: torch.device) -> AbstractContextManager[None]:
    """Within `autocast`, what E and D compute in."""
    bf16 = "bf16" == optimization.precision == optimization.autoencoder_precision
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def prepare(generator: Generator, optimization: Optimization, device: torch.device) -> None:
    """Move G to its device, its UNet channels-last; checkpoint and compile it if asked to; set the threads.

    Of these at most one a processor.

    Raises TrainingError for a precision that cannot be trained in.
    """
    _refuse_other_precisions(optimization.precision)
    if optimization.autoencoder_precision not in ("bf16", "fp32"):
        found = optimization.autoencoder_precision
        raise TrainingError(f"autoencoder_precision {found!r} is not supported; bf16 and fp32 are")
    if optimization.threads:
        torch.set_num_threads(min(optimization.threads, processors()))
    generator.to(device)
    for part in (generator.unet, generator.vae):
        part.to(memory_format=torch.channels_last)
    if optimization.gradient_checkpointing:
        generator.enable_gradient_checkpointing(optimization.checkpointed)
    if optimization.compile:
        generator.unet.compile(dynamic=False)


def _refuse_other_precisions(precision: str) -> None:
    if precision == "fp16":
        raise TrainingError(
            "precision fp16 is refused: it needs a loss scaler, and with two optimizers and accumulated "
            "gradients the scaler unscales the discriminator's twice, so that they all but vanish",
            hint="precision: bf16 (the same memory, no scaler), or fp32 on a GPU without bfloat16",
        )
    if precision not in ("bf16", "fp32"):
        raise TrainingError(f"precision {precision!r} is not supported; bf16 and fp32 are")
