"""E and D of a base: between pictures and the latents that its backbone works on.

    z = (E(x) - shift) scale        x = D(z / scale + shift)

    autoencoder           E gives       cell             shift and scale
    AutoencoderKL         a posterior   8 px             scaling_factor, shift_factor; per channel too
    AutoencoderDC         a latent      32 px            scaling_factor
    AutoencoderTiny       a latent      8 px             scaling_factor
    PatchAutoencoder,     a latent      4 px in nano     scaling_factor
    FeatureAutoencoder

A mean and std per channel stand in `latents_mean` and `latents_std`: shift is the mean, scale the scaling
factor over the std (diffusers' Stable Diffusion XL pipelines).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tudsr_train.foreign import read_config

if TYPE_CHECKING:
    from diffusers import ModelMixin

PIXELS = ("PatchAutoencoder", "FeatureAutoencoder")
AUTOENCODERS = (*PIXELS, "AutoencoderKL", "AutoencoderDC", "AutoencoderTiny")


class Codec:
    """A view of an autoencoder: it owns no weights."""

    def __init__(self, vae: nn.Module) -> None:
        self.vae = cast("ModelMixin", vae)

    @property
    def channels(self) -> int:
        """C of a latent."""
        return int(self.vae.config.latent_channels)

    @property
    def pixels_per_cell(self) -> int:
        """Side of the square of pixels behind a latent cell: 8 in Stable Diffusion, 32 in Sana, 4 in nano."""
        config = self.vae.config
        if config.get("patch_size"):
            return int(config.patch_size)
        levels = config.get("encoder_block_out_channels") or config.block_out_channels
        return int(2 ** (len(levels) - 1))

    @property
    def latent_margin(self) -> int:
        """Latent cells on each side that stand for pixels beyond the picture; 0 but for nano."""
        return int(self.vae.config.get("margin", 0)) // self.pixels_per_cell

    @property
    def scaling_factor(self) -> float:
        """The scale that all channels share."""
        return float(self.vae.config.scaling_factor)

    @property
    def shift_factor(self) -> float:
        """The shift that all channels share."""
        return float(self.vae.config.get("shift_factor") or 0.0)

    @property
    def mean(self) -> tuple[float, ...]:
        """The shift of every channel; empty where they share one."""
        return tuple(self.vae.config.get("latents_mean") or ())

    @property
    def std(self) -> tuple[float, ...]:
        """What the scaling factor is divided by, for every channel; empty for nothing."""
        return tuple(self.vae.config.get("latents_std") or ())

    def require_sound(self) -> None:
        """ValueError where shift or scale are such that no latent could be made, or none undone."""
        if not 0 < self.scaling_factor < math.inf:
            raise ValueError(f"its autoencoder's scaling factor is {self.scaling_factor}")
        if not math.isfinite(self.shift_factor) or not all(map(math.isfinite, self.mean)):
            raise ValueError("its autoencoder's shift is not finite")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError("its autoencoder's latents_std is not positive")
        for name, values in (("latents_mean", self.mean), ("latents_std", self.std)):
            if len(values) not in (0, self.channels):
                raise ValueError(
                    f"its autoencoder's {name} has {len(values)} entries for {self.channels} channels"
                )

    def encode(self, x: Tensor, sample: bool = False) -> Tensor:
        """z of a picture (B, 3, H, W) in [-1, 1]: of the posterior's mode, or of a sample of it, where there
        is a posterior."""
        return self.scaled(self._latent(x, sample))

    def decode(self, z: Tensor) -> Tensor:
        """The picture of a latent, not clamped."""
        picture: Tensor = self.vae.decode(self.unscaled(z)).sample
        return picture

    def scaled(self, latent: Tensor) -> Tensor:
        """z = (latent - shift) scale."""
        mean, std = self._per_channel(self.mean, latent), self._per_channel(self.std, latent)
        if mean is not None:
            latent = latent - mean
        elif self.shift_factor:
            latent = latent - self.shift_factor
        return latent * (self.scaling_factor if std is None else self.scaling_factor / std)

    def unscaled(self, z: Tensor) -> Tensor:
        """latent = z / scale + shift."""
        mean, std = self._per_channel(self.mean, z), self._per_channel(self.std, z)
        latent = z / self.scaling_factor if std is None else z * std / self.scaling_factor
        if mean is not None:
            return latent + mean
        return latent + self.shift_factor if self.shift_factor else latent

    def _latent(self, x: Tensor, sample: bool) -> Tensor:
        encoded = self.vae.encode(x)
        posterior = getattr(encoded, "latent_dist", None)
        if posterior is not None:
            found = posterior.sample() if sample else posterior.mode()
        else:
            found = encoded.latents if hasattr(encoded, "latents") else encoded.latent
        return cast(Tensor, found)

    @staticmethod
    def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor | None:
        return (
            torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1) if values else None
        )


def load_autoencoder(folder: Path) -> ModelMixin:
    """The autoencoder in `folder`, float32. ValueError where it is of no known class or lacks weights."""
    from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny

    from tudsr_train.bases.feature_autoencoder import FeatureAutoencoder
    from tudsr_train.bases.patch_autoencoder import PatchAutoencoder

    kind = read_config(folder / "config.json")["_class_name"]
    if kind == "PatchAutoencoder":
        return PatchAutoencoder.from_config(PatchAutoencoder.load_config(folder))
    known = (AutoencoderKL, AutoencoderDC, AutoencoderTiny, FeatureAutoencoder)
    weighty = {one.__name__: one for one in known}
    if kind in weighty:
        return load_whole(weighty[kind], folder)
    raise ValueError(f"vae/ is a {kind}; {', '.join(AUTOENCODERS[:-1])} and {AUTOENCODERS[-1]} are known")


def load_whole(kind: type[ModelMixin], folder: Path) -> ModelMixin:
    """A model in float32; ValueError where weights are missing, which diffusers would draw at random."""
    model, found = kind.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True)
    if found["missing_keys"]:
        raise ValueError(
            f"{folder.name}/ lacks {len(found['missing_keys'])} weights: {found['missing_keys'][0]}"
        )
    return model
