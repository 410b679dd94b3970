"""The three modules that are exported, each with one input and one output and nothing left to choose.

    VaeEncoder: image -> z_L        UnetStage: z_L -> z_H        VaeDecoder: z_H -> image

Images are (1, 3, T, T) in [-1, 1], latents are scaled (times the autoencoder's scaling factor).
Every module owns its weights, so that turning it to half leaves the base alone.
"""

from __future__ import annotations

import copy

from diffusers import ModelMixin
from torch import Tensor, nn

from tudsr_export.fold import (
    bake_one_step,
    bake_prompt,
    bake_timestep,
    scaled_post_quant_conv,
    scaled_quant_conv,
)
from tudsr_train.bases.feature_autoencoder import FeatureAutoencoder
from tudsr_train.bases.patch_autoencoder import PatchAutoencoder
from tudsr_train.generator import Generator


class VaeEncoder(nn.Module):
    """E of an `AutoencoderKL`: the posterior's mode, times the scaling factor."""

    def __init__(self, vae: ModelMixin) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(vae.encoder)
        self.quant_conv = scaled_quant_conv(vae)

    def forward(self, image: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(image))


class VaeDecoder(nn.Module):
    """D of an `AutoencoderKL`, of a scaled latent; not clamped."""

    def __init__(self, vae: ModelMixin) -> None:
        super().__init__()
        self.decoder = copy.deepcopy(vae.decoder)
        self.post_quant_conv = scaled_post_quant_conv(vae)

    def forward(self, z_H: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z_H))


class PatchEncoder(nn.Module):
    """E of a `PatchAutoencoder` or `FeatureAutoencoder`, times the scaling factor."""

    vae: PatchAutoencoder | FeatureAutoencoder

    def __init__(self, vae: PatchAutoencoder | FeatureAutoencoder) -> None:
        super().__init__()
        self.vae = copy.deepcopy(vae)

    def forward(self, image: Tensor) -> Tensor:
        z, s = self.vae.encode(image).latent_dist.mode(), self.vae.config.scaling_factor
        return z if s == 1 else z * s


class PatchDecoder(nn.Module):
    """D of a `PatchAutoencoder` or `FeatureAutoencoder`, of a scaled latent; not clamped."""

    vae: PatchAutoencoder | FeatureAutoencoder

    def __init__(self, vae: PatchAutoencoder | FeatureAutoencoder) -> None:
        super().__init__()
        self.vae = copy.deepcopy(vae)

    def forward(self, z_H: Tensor) -> Tensor:
        s = self.vae.config.scaling_factor
        return self.vae.decode(z_H if s == 1 else z_H / s).sample


class UnetStage(nn.Module):
    """One stage's B and Eq. (2), second line, with timestep and prompt inside: z_H from z_L.

    Takes over the UNet of `generator` and changes it. An adapter that is attached and not merged stays
    attached, but for what it does to the prompt's keys and values: these are constants.

    Args:
        formula: how z_H follows from the prediction (`bake_one_step`); None: as the base predicts.
    """

    def __init__(self, generator: Generator, timestep: int, formula: str | None = None) -> None:
        super().__init__()
        self.unet = generator.unet
        bake_timestep(self.unet, timestep)
        bake_prompt(self.unet, generator.prompt_embeds)
        alpha_t = float(generator.alphas_cumprod[timestep])
        # In half, a rounded c would change the contrast of the whole picture by up to 0.05 %; c is near 1, so
        # that rounding c - 1 instead does not matter.
        self.c_minus_1 = bake_one_step(self.unet, alpha_t, formula or generator.prediction_type) - 1

    def forward(self, z_L: Tensor) -> Tensor:
        return z_L + (self.c_minus_1 * z_L + self.unet(z_L, 0, None, return_dict=False)[0])


def vae_graphs(vae: ModelMixin) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of any kind of autoencoder."""
    if isinstance(vae, PatchAutoencoder | FeatureAutoencoder):
        return PatchEncoder(vae).eval(), PatchDecoder(vae).eval()
    return VaeEncoder(vae).eval(), VaeDecoder(vae).eval()
