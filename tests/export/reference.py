"""The two-stage pipeline again, from the paper's formulas with plain diffusers and peft; no code of ours."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor


def prompt_embeds(base: Path) -> Tensor:
    if (base / "prompt").is_dir():
        return load_file(base / "prompt" / "prompt_embeds.safetensors")["prompt_embeds"]
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    return CLIPTextModel.from_pretrained(base / "text_encoder")(tokens.input_ids).last_hidden_state


def to_latent(base: Path, image: Tensor) -> Tensor:
    config = json.loads((base / "vae" / "config.json").read_text())
    if config["_class_name"] == "AutoencoderKL":
        vae = AutoencoderKL.from_pretrained(base / "vae").eval()
        return vae.encode(image).latent_dist.mean * vae.config.scaling_factor
    p, m = config["patch_size"], config["margin"]
    rows, columns = (torch.arange(-m, side + m).abs() for side in image.shape[-2:])  # reflected before ...
    rows, columns = (
        torch.where(i < side, i, 2 * (side - 1) - i)  # ... and behind
        for i, side in zip((rows, columns), image.shape[-2:], strict=True)
    )
    image = image[..., rows, :][..., columns]
    b, c, h, w = image.shape
    patches = image.reshape(b, c, h // p, p, w // p, p).permute(0, 1, 3, 5, 2, 4)
    return patches.reshape(b, c * p * p, h // p, w // p) * config["scaling_factor"]


def to_image(base: Path, latent: Tensor) -> Tensor:
    config = json.loads((base / "vae" / "config.json").read_text())
    if config["_class_name"] == "AutoencoderKL":
        vae = AutoencoderKL.from_pretrained(base / "vae").eval()
        return vae.decode(latent / vae.config.scaling_factor).sample
    p, m = config["patch_size"], config["margin"]
    b, c, h, w = latent.shape
    cells = (latent / config["scaling_factor"]).reshape(b, c // (p * p), p, p, h, w)
    image = cells.permute(0, 1, 4, 2, 5, 3).reshape(b, c // (p * p), h * p, w * p)
    return image[..., m : h * p - m, m : w * p - m]


def denoise(base: Path, adapter: Path, latent: Tensor, t: int) -> Tensor:
    unet = PeftModel.from_pretrained(UNet2DConditionModel.from_pretrained(base / "unet").eval(), adapter)
    scheduler = DDPMScheduler.from_pretrained(base / "scheduler")
    predicted = unet(latent, t, encoder_hidden_states=prompt_embeds(base)).sample
    abar = scheduler.alphas_cumprod[t]
    if scheduler.config.prediction_type == "v_prediction":
        return abar.sqrt() * latent - (1 - abar).sqrt() * predicted
    return (latent - (1 - abar).sqrt() * predicted) / abar.sqrt()


@torch.no_grad()
def restore(base: Path, steps: list[tuple[Path, int]], image: Tensor) -> Tensor:
    """Every (adapter folder, timestep) of `steps` in turn, clamped after each."""
    for adapter, t in steps:
        image = to_image(base, denoise(base, adapter, to_latent(base, image), t)).clamp(-1, 1)
    return image
