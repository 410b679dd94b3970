"""The `nano` base before training: a small UNet over pixel patches, in the diffusers folder layout.

What makes it a one-step restorer from the first step on: `conv_out` starts at zero, and the scheduler's
betas are so small that a zero prediction in Eq. (2) returns the input scaled by 1 / sqrt(abar_t), within
one per cent. With feature channels (`FeatureAutoencoder`) only the rows of the pixels start at zero, and they
stay there (`tudsr_train.base`): what the backbone says reaches the picture through the decoder alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tudsr_runtime.errors import TrainingError
from tudsr_train.bases.prompt import save_prompt

PROMPT_TOKENS = 8
GAIN_AT = 200
"""Timestep (t_1, paper 4.1) at which the decoder sees features as large as the UNet predicts them."""

LIMITS = {
    "patch_size": (1, 64), "margin": (0, 1024), "block_out_channels": (1, 4096), "layers_per_block": (1, 100),
    "num_attention_heads": (1, 1024), "cross_attention_dim": (1, 4096), "norm_num_groups": (1, 4096),
    "feature_channels": (0, 4096), "decoder_widths": (1, 4096),
}  # fmt: skip
MOST_LEVELS = 10


@dataclass(frozen=True)
class NanoBase:
    """Architecture of the base that `tudsr train base` makes."""

    patch_size: int = 4
    """Pixels per latent cell, per axis."""
    margin: int = 16
    """Pixels reflected around every picture and cut off again (see `PatchAutoencoder`)."""
    block_out_channels: tuple[int, ...] = (64, 96, 128)
    """UNet channels per level, finest first; the coarsest level attends."""
    layers_per_block: int = 1
    num_attention_heads: int = 4
    cross_attention_dim: int = 64
    norm_num_groups: int = 16
    beta: float = 1e-4
    """Constant noise schedule: abar_200 = 0.980, abar_50 = 0.995. With feature channels 1e-6 is right: the
    pixels then pass Eq. (2) unchanged to a ten-thousandth."""
    feature_channels: int = 0
    """Channels of a cell beside its pixels, which the decoder makes a residual of; 0 for none, and no
    weights in the decoder (nano 0.1)."""
    decoder_widths: tuple[int, ...] = (48, 32, 16)
    """Channels of the decoder at cells and after each doubling, where there are feature channels."""

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not numbers or not all(least <= number <= most for number in numbers):
                shown = list(value) if isinstance(value, tuple) else value
                raise TrainingError(f"model: {name} must be {least} to {most}, not {shown}")
        if not 0 < self.beta < 1 or len(self.block_out_channels) > MOST_LEVELS:
            raise TrainingError(
                f"model: beta must be between 0 and 1, and levels at most {MOST_LEVELS}, not {self.beta} and "
                f"{len(self.block_out_channels)}"
            )
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise TrainingError(
                f"model: norm_num_groups must divide block_out_channels, not be {self.norm_num_groups} for "
                f"{list(self.block_out_channels)}"
            )

    @property
    def pixel_channels(self) -> int:
        """Latent channels that are pixels."""
        return 3 * self.patch_size**2


def create_base(folder: Path, nano: NanoBase, seed: int) -> None:
    """Write an untrained base into an empty folder: unet/, vae/, scheduler/ and the stored prompt."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    torch.manual_seed(seed)
    latent_channels = nano.pixel_channels + nano.feature_channels
    levels = len(nano.block_out_channels)
    unet = UNet2DConditionModel(
        sample_size=512 // nano.patch_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=nano.block_out_channels,
        layers_per_block=nano.layers_per_block,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        cross_attention_dim=nano.cross_attention_dim,
        # diffusers calls it a dimension, but uses it as the number of heads
        attention_head_dim=nano.num_attention_heads,
        norm_num_groups=nano.norm_num_groups,
    )
    nn.init.zeros_(unet.conv_out.weight[: nano.pixel_channels])
    nn.init.zeros_(unet.conv_out.bias[: nano.pixel_channels])
    unet.save_pretrained(folder / "unet")
    scheduler = DDPMScheduler(beta_start=nano.beta, beta_end=nano.beta, beta_schedule="linear")
    scheduler.save_pretrained(folder / "scheduler")
    save_prompt(folder, torch.randn(1, PROMPT_TOKENS, nano.cross_attention_dim))
    _save_autoencoder(folder / "vae", nano, float(scheduler.alphas_cumprod[GAIN_AT]))


def _save_autoencoder(folder: Path, nano: NanoBase, alpha_t: float) -> None:
    from tudsr_train.bases.feature_autoencoder import FeatureAutoencoder
    from tudsr_train.bases.patch_autoencoder import PatchAutoencoder

    cell = {"patch_size": nano.patch_size, "margin": nano.margin}
    if not nano.feature_channels:
        PatchAutoencoder(latent_channels=nano.pixel_channels, **cell).save_config(folder)
        return
    FeatureAutoencoder(
        feature_channels=nano.feature_channels,
        latent_channels=nano.pixel_channels + nano.feature_channels,
        widths=nano.decoder_widths,
        feature_gain=(1 - alpha_t) ** -0.5,
        **cell,
    ).save_pretrained(folder)
