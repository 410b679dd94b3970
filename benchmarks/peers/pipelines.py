"""Tile plans of the paper's rivals, in plain diffusers, over the same networks and weights.

Written from the descriptions of the methods, not from their code. Only the plans differ: which tiles, of
which size, and what runs once over the whole picture. One UNet evaluation per tile, as in the paper's table;
the fixed prompt and timestep are given, and text encoders are left out for all alike.

- `latent_tiles`: the UNet works on latent tiles of 96 that overlap by 32 and are blended by a Gaussian. The
  autoencoder works on the whole picture; where that is larger than 1088 px (encoder) or 246 cells (decoder),
  on equal parts of at most 1024 px or 224 cells, which see 32 px or 11 cells beyond their borders (OSEDiff
  and PiSA-SR as they are started by default). Their parts exchange statistics at every norm, by way of the
  host; ours do not, which is faster.
- `coupled`: encoder, UNet and decoder of one 64-cell tile (512 px), overlapping by half, eight of them at a
  time (InvSR), blended by a Gaussian in the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product
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
        prompt = self.prompt.expand(len(z_L), -1, -1)
        eps = self.unet(z_L, self.timestep, encoder_hidden_states=prompt).sample
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


def blended(x: Tensor, tile: int, stride: int, run: Callable[[Tensor], Tensor], batch: int = 1) -> Tensor:
    """`run`, which keeps shapes, over `batch` tiles of `x` at a time; their Gaussian-weighted mean."""
    tile = min(tile, *x.shape[-2:])
    weight = gaussian(tile, x)
    total, weights = torch.zeros_like(x), torch.zeros_like(x[:, :1])
    corners = list(product(starts(x.shape[-2], tile, stride), starts(x.shape[-1], tile, stride)))
    places = [(..., slice(top, top + tile), slice(left, left + tile)) for top, left in corners]
    for begin in range(0, len(places), batch):
        some = places[begin : begin + batch]
        for place, y in zip(some, run(torch.cat([x[place] for place in some])), strict=True):
            total[place] += y * weight
            weights[place] += weight
    return total / weights


def in_parts(x: Tensor, most: int, pad: int, ratio: float, run: Callable[[Tensor], Tensor]) -> Tensor:
    """`run`, which changes sides by `ratio`, over equal parts of `x` of at most `most` pixels that see `pad`
    beyond their inner borders; over all of it where it is no larger than `most` + 2 `pad`."""
    if max(x.shape[-2:]) <= most + 2 * pad:
        return run(x)
    rows = [_part(x, row, most, pad, ratio, run) for row in _parts(x.shape[-2], most, pad)]
    return torch.cat(rows, dim=-2)


Part = tuple[int, int, int, int]
"""First and last pixel of a part, and of what it sees."""


def _parts(length: int, most: int, pad: int) -> list[Part]:
    n = math.ceil(length / most)
    edges = [length * i // n for i in range(n + 1)]
    return [(a, b, max(a - pad, 0), min(b + pad, length)) for a, b in pairwise(edges)]


def _part(x: Tensor, row: Part, most: int, pad: int, ratio: float, run: Callable[[Tensor], Tensor]) -> Tensor:
    top, bottom, above, below = row
    done = []
    for left, right, before, behind in _parts(x.shape[-1], most, pad):
        y = run(x[..., above:below, before:behind])
        rows = slice(round((top - above) * ratio), round((bottom - above) * ratio))
        columns = slice(round((left - before) * ratio), round((right - before) * ratio))
        done.append(y[..., rows, columns])
    return torch.cat(done, dim=-1)


def latent_tiles(networks: Networks, x: Tensor, scale: int, tile: int = 96, overlap: int = 32) -> Tensor:
    """Bicubic to the final size, encode, UNet on latent tiles, decode."""
    cell = 2 ** (len(networks.vae.config.block_out_channels) - 1)
    large = F.interpolate(x, scale_factor=scale, mode="bicubic").clamp(-1, 1)
    z_L = in_parts(large, 1024, 32, 1 / cell, networks.encode)
    z_H = blended(z_L, tile, tile - overlap, networks.denoise)
    return in_parts(z_H, 224, 11, cell, networks.decode)


def coupled(
    networks: Networks, x: Tensor, scale: int, tile: int = 64, overlap: int = 32, batch: int = 8
) -> Tensor:
    """Bicubic to the final size; encoder, UNet and decoder of a batch of tiles after the other."""
    cell = 2 ** (len(networks.vae.config.block_out_channels) - 1)
    large = F.interpolate(x, scale_factor=scale, mode="bicubic").clamp(-1, 1)

    def run(piece: Tensor) -> Tensor:
        return networks.decode(networks.denoise(networks.encode(piece)))

    return blended(large, tile * cell, (tile - overlap) * cell, run, batch)
