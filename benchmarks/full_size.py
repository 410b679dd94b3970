"""Stable Diffusion 2.1-base's architecture, full size or tiny, with random weights, for all benchmarks.

865.9 M and 83.7 M parameters. Random weights take as long as trained ones.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

from benchmarks.peers.pipelines import Networks

TINY = {
    "unet": {"block_out_channels": (32, 64), "layers_per_block": 1, "attention_head_dim": (4, 8),
             "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 64},
    "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
}  # fmt: skip
FULL = {
    "unet": {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024},
    "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
}
TIMESTEP = 200
ALPHA = 0.5888
"""alphas_cumprod[200] of Stable Diffusion's scheduler, rounded; it changes no duration."""


def unet_and_vae(size: str = "full") -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """Both networks in float32, drawn from torch's generator; `size` is "full" or "tiny"."""
    configs = {"full": FULL, "tiny": TINY}[size]
    unet = UNet2DConditionModel(
        sample_size=64, in_channels=4, out_channels=4, use_linear_projection=True, **configs["unet"]
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=512,
        **configs["vae"],
    )
    return unet, vae


def scheduler() -> DDPMScheduler:
    """Its schedule."""
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def networks(size: str = "full", dtype: torch.dtype = torch.float32, device: str = "cpu") -> Networks:
    """The networks with weights from seed 0, in eval mode."""
    torch.manual_seed(0)
    unet, vae = unet_and_vae(size)
    prompt = torch.randn(1, 77, unet.config.cross_attention_dim)
    parts = (part.to(device, dtype).eval().requires_grad_(False) for part in (vae, unet))
    return Networks(*parts, prompt.to(device, dtype), TIMESTEP, ALPHA)
