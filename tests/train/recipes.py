"""Configurations that train in a second: a tiny base, a random discriminator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tudsr_train.config import (
    DecoderConfig,
    LightDecoderConfig,
    Lora,
    Optimization,
    Stage1Config,
    Stage2Config,
    Validation,
)
from tudsr_train.data.degradation_nano import Degradation
from tudsr_train.data.sources import Data
from tudsr_train.discriminators.base import DiscriminatorConfig
from tudsr_train.losses.reconstruction import LossWeights

DISCRIMINATOR = DiscriminatorConfig(
    kind="dinov3", weights="random", layers=(1, 2), width=32, diff_augment="color,translation,cutout"
)
LOSS = LossWeights(gan=0.5, mae=0.5)
"""Without EA-DISTS, whose VGG16 would take most of the time."""


def optimization(**changes: Any) -> Optimization:
    """One short, exact, quiet run."""
    defaults = {"precision": "fp32", "workers": 0, "accumulation": 1, "log_every": 1, "save_every": 100}
    return Optimization(**(defaults | {"lr": 1e-3, "trackers": (), "device": "cpu"} | changes))


def _common(base: Path, data: Data, changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "base": str(base),
        "R": 64,  # where a tiny DINOv3 has four patches a side
        "lora": Lora(rank=4),
        "data": data,
        "degradation": Degradation(),
        "loss": LOSS,
        "discriminator": DISCRIMINATOR,
        "validation": Validation(every=2, images=1),
        "optimization": optimization(**changes),
    }


def stage1_config(base: Path, data: Data, **changes: Any) -> Stage1Config:
    """Stage 1 on pictures of 64 pixels; `changes` are the optimization's."""
    return Stage1Config(M=(2,), **_common(base, data, changes))


def stage2_config(base: Path, stage1: Path, data: Data, **changes: Any) -> Stage2Config:
    """Stage 2 on pictures of 128 pixels, in chunks of 64."""
    return Stage2Config(stage1=str(stage1), M=(1,), **_common(base, data, changes))


def decoder_config(base: Path, data: Data, size: str = "half", **changes: Any) -> DecoderConfig:
    """A light decoder on pictures of 32 pixels."""
    return DecoderConfig(
        base=str(base),
        R=32,
        M=(2,),
        model=LightDecoderConfig(size),
        data=data,
        degradation=Degradation(),
        loss=LossWeights(mae=1.0),
        validation=Validation(every=2, images=1),
        optimization=optimization(**changes),
    )
