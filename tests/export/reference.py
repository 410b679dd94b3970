"""The two-stage pipeline again, from the paper's formulas with plain diffusers and peft; no code of ours."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv2d, leaky_relu


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
    cells = patches.reshape(b, c * p * p, h // p, w // p) * config["scaling_factor"]
    if "feature_channels" not in config:
        return cells
    weights = load_file(base / "vae" / "diffusion_pytorch_model.safetensors")
    cells = torch.einsum("oi,bihw->bohw", weights["analysis"][..., 0, 0], cells)
    return torch.cat([cells, cells.new_zeros(b, config["feature_channels"], h // p, w // p)], 1)


def to_image(base: Path, latent: Tensor) -> Tensor:
    config = json.loads((base / "vae" / "config.json").read_text())
    if config["_class_name"] == "AutoencoderKL":
        vae = AutoencoderKL.from_pretrained(base / "vae").eval()
        return vae.decode(latent / vae.config.scaling_factor).sample
    p, m = config["patch_size"], config["margin"]
    b, _, h, w = latent.shape
    pixels, features = latent[:, : 3 * p * p], latent[:, 3 * p * p :]
    if features.shape[1]:
        weights = load_file(base / "vae" / "diffusion_pytorch_model.safetensors")
        pixels = torch.einsum("oi,bihw->bohw", weights["synthesis"][..., 0, 0], pixels)
    cells = (pixels / config["scaling_factor"]).reshape(b, 3, p, p, h, w)
    image = cells.permute(0, 1, 4, 2, 5, 3).reshape(b, 3, h * p, w * p)
    if features.shape[1]:
        image = image + residual(weights, features * config["feature_gain"], image)
    return image[..., m : h * p - m, m : w * p - m]


def residual(weights: dict[str, Tensor], h: Tensor, image: Tensor) -> Tensor:
    def convolved(name: str, x: Tensor) -> Tensor:
        return conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    for number in range(3):
        if number:
            h = doubled(doubled(h.transpose(-1, -2)).transpose(-1, -2))
        h = leaky_relu(convolved(f"enlarging.{number}", h), 0.2)
    return convolved("conv_out", leaky_relu(convolved("looking", torch.cat([h, image], 1)), 0.2))


def doubled(x: Tensor) -> Tensor:
    """Twice as long along the last axis, linearly between the centres of pixels, the edge repeated."""
    padded = torch.cat([x[..., :1], x, x[..., -1:]], -1)
    before, after = padded[..., :-2], padded[..., 2:]
    return torch.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], -1).flatten(-2)


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


def axis(length: int, tile: int, overlap: int) -> tuple[list[int], Tensor]:
    """Starts of the tiles along one axis, and the weight of every tile at every pixel, (tiles, length)."""
    if length <= tile:
        return [0], torch.ones(1, length)
    n = -(-(length - overlap) // (tile - overlap))
    starts = [round(i * (length - tile) / (n - 1)) for i in range(n)]
    strides = [after - before for before, after in itertools.pairwise(starts)]
    ramp = min(112, tile - max(strides) - 16, *(strides if n > 2 else []))
    weights = torch.zeros(n, length, dtype=torch.float64)
    position = torch.arange(length) + 0.5
    rising = [torch.ones(length)]
    for before, after in itertools.pairwise(starts):
        begin = after + (before + tile - after - ramp) // 2
        rising.append(0.5 - 0.5 * torch.cos(torch.pi * ((position - begin) / ramp).clamp(0, 1)))
    for i in range(n):
        falling = rising[i + 1] if i + 1 < n else torch.zeros(length)
        weights[i] = rising[i] * (1 - falling)
    return starts, weights.float()


@torch.no_grad()
def restore_picture(
    base: Path, steps: list[tuple[Path, int, int]], image: Tensor, tile: int, overlap: int
) -> Tensor:
    """A whole picture, (1, 3, h, w) in [-1, 1], through every (adapter folder, timestep, factor) in turn."""
    for adapter, t, factor in steps:
        x = torch.nn.functional.interpolate(image, scale_factor=factor, mode="bilinear", align_corners=False)
        height, width = x.shape[-2:]
        missing = [max(tile - side, 0) for side in (width, height)]
        mirrored = [min(gap, side - 1) for gap, side in zip(missing, (width, height), strict=True)]
        padded = torch.nn.functional.pad(x, (0, mirrored[0], 0, mirrored[1]), mode="reflect")
        rest = (0, missing[0] - mirrored[0], 0, missing[1] - mirrored[1])
        padded = torch.nn.functional.pad(padded, rest, mode="replicate")
        (rows, down), (columns, across) = axis(height, tile, overlap), axis(width, tile, overlap)
        image = torch.zeros_like(x)
        for top, vertical in zip(rows, down, strict=True):
            for left, horizontal in zip(columns, across, strict=True):
                patch = padded[..., top : top + tile, left : left + tile]
                done = to_image(base, denoise(base, adapter, to_latent(base, patch), t)).clamp(-1, 1)
                h, w = min(tile, height - top), min(tile, width - left)
                weight = vertical[top : top + h, None] * horizontal[left : left + w]
                image[..., top : top + h, left : left + w] += weight * done[..., :h, :w]
    return image
