"""An autoencoder that loses nothing and costs nothing: every latent cell is a patch of pixels.

Same interface as diffusers' `AutoencoderKL`, so that the generator, the trainer and the export treat the
`nano` base as they treat Stable Diffusion. There are no weights: `vae/` holds a `config.json` only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from torch import Tensor, nn


@dataclass(frozen=True)
class PatchDistribution:
    """A posterior of zero width: its sample is its mode."""

    latent: Tensor

    def mode(self) -> Tensor:
        return self.latent

    def sample(self) -> Tensor:
        return self.latent


@dataclass(frozen=True)
class PatchEncoding:
    latent_dist: PatchDistribution


@dataclass(frozen=True)
class PatchDecoding:
    sample: Tensor


class PatchAutoencoder(ConfigMixin, nn.Module):
    """Pixel unshuffle (Shi et al. 2016, inverted) behind the interface of `AutoencoderKL`.

    `encode(image (B, 3, H, W))` has `.latent_dist.mode()` of shape (B, 3 p^2, (H + 2 m) / p, (W + 2 m) / p),
    and `decode` undoes it exactly. H and W must be multiples of `patch_size` p and larger than `margin` m: m
    pixels are reflected around the image and cut off again, because a UNet that pads with zeros is at
    its worst along the border of what it sees.
    """

    config: FrozenDict
    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        patch_size: int = 4,
        scaling_factor: float = 1.0,  # noqa: ARG002 - kept in the config, where `Generator` reads it
        latent_channels: int = 48,
        margin: int = 0,
    ) -> None:
        super().__init__()
        if margin % patch_size:
            raise ValueError(f"margin {margin} is no multiple of the patch size {patch_size}")
        if latent_channels != 3 * patch_size**2:
            raise ValueError(
                f"a patch of {patch_size} x {patch_size} RGB pixels has {3 * patch_size**2} values, "
                f"but latent_channels is {latent_channels}"
            )

    def encode(self, x: Tensor) -> PatchEncoding:
        if self.config.margin:
            x = F.pad(x, (self.config.margin,) * 4, mode="reflect")
        return PatchEncoding(PatchDistribution(F.pixel_unshuffle(x, self.config.patch_size)))

    def decode(self, z: Tensor) -> PatchDecoding:
        x, margin = F.pixel_shuffle(z, self.config.patch_size), self.config.margin
        return PatchDecoding(x[..., margin : x.shape[-2] - margin, margin : x.shape[-1] - margin])
