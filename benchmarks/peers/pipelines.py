"""Tile plans of the paper's rivals, in plain diffusers, over the same networks and weights.

Written from the descriptions of the methods, not from their code. Only the plans differ: which tiles, of
which size, and what runs once over the whole picture. One UNet evaluation per tile, as in the paper's table;
the fixed prompt and timestep are given, and text encoders are left out for all alike.

- `whole_vae`: the picture is encoded as a whole, the UNet works on latent tiles of 96 that overlap by 32 and
  are blended by a Gaussian, the latents are decoded as a whole (OSEDiff, PiSA-SR).
- `coupled`: encoder, UNet and decoder of one 64-cell tile (512 px) after the other, overlapping by half
  (InvSR; HYPIR's numbers), blended by a Gaussian in the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name


@dataclass(frozen=True)
class Networks:
    """The parts of one one-step generator: a diffusers autoencoder and UNet, a prompt (1, n, d), a timestep
    and its alpha_cumprod."""

    vae: Any
    unet: Any
    prompt: Tensor
    timestep: int
    alpha: float

    def encode(self, x: Tensor) -> Tensor:
        """Image (1, 3, h, w) in [-1, 1] to scaled latents (1, c, h / 8, w / 8)."""
        z: Tensor = self.vae.encode(x).latent_dist.mode() * self.vae.config.scaling_factor
        return z

    def denoise(self, z_L: Tensor) -> Tensor:
        """One step: z_H = (z_L - sqrt(1 - alpha) eps) / sqrt(alpha)."""
        eps = self.unet(z_L, self.timestep, encoder_hidden_states=self.prompt).sample
        z_H: Tensor = (z_L - (1 - self.alpha) ** 0.5 * eps) / self.alpha**0.5
        return z_H

    def decode(self, z_H: Tensor) -> Tensor:
        """Latents to an image."""
        x: Tensor = self.vae.decode(z_H / self.vae.config.scaling_factor).sample
        return x


def starts(length: int, tile: int, stride: int) -> list[int]:
    """First positions of tiles at a fixed stride, the last one pushed back to the border."""
    if length <= tile:
        return [0]
    inner = range(0, length - tile, stride)
    return [*inner, length - tile]


def gaussian(size: int, like: Tensor) -> Tensor:
    """Weights (size, size) of a Gaussian whose variance is 0.01 of the tile's squared side."""
    position = (torch.arange(size, device=like.device, dtype=torch.float32) + 0.5) / size - 0.5
    line = torch.exp(-(position**2) / (2 * 0.01))
    return (line[:, None] * line).to(like.dtype)


def blended(x: Tensor, tile: int, stride: int, run: Callable[[Tensor], Tensor]) -> Tensor:
    """`run`, which keeps shapes, over tiles of `x`; their Gaussian-weighted mean."""
    tile = min(tile, *x.shape[-2:])
    weight = gaussian(tile, x)
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    for top, left in product(starts(x.shape[-2], tile, stride), starts(x.shape[-1], tile, stride)):
        place = (..., slice(top, top + tile), slice(left, left + tile))
        total[place] += run(x[place]) * weight
        weights[place] += weight
    return total / weights


def whole_vae(networks: Networks, x: Tensor, scale: int, tile: int = 96, overlap: int = 32) -> Tensor:
    """Bicubic to the final size, one encode, UNet on latent tiles, one decode."""
    large = F.interpolate(x, scale_factor=scale, mode="bicubic").clamp(-1, 1)
    z_L = networks.encode(large)
    return networks.decode(blended(z_L, tile, tile - overlap, networks.denoise))


def coupled(networks: Networks, x: Tensor, scale: int, tile: int = 64, overlap: int = 32) -> Tensor:
    """Bicubic to the final size; encoder, UNet and decoder of one tile after the other."""
    cell = 2 ** (len(networks.vae.config.block_out_channels) - 1)
    large = F.interpolate(x, scale_factor=scale, mode="bicubic").clamp(-1, 1)

    def run(piece: Tensor) -> Tensor:
        return networks.decode(networks.denoise(networks.encode(piece)))

    return blended(large, tile * cell, (tile - overlap) * cell, run)
