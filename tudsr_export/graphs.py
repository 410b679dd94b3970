"""The three modules that are exported, each with one input and one output and nothing left to choose.

    VaeEncoder, PosteriorEncoder, CodecEncoder: image -> z_L        UnetStage, TransformerStage: z_L -> z_H
    VaeDecoder, CodecDecoder: z_H -> image

Images are (1, 3, T, T) in [-1, 1], latents are scaled (times the autoencoder's scaling factor).
Every module owns its weights, so that turning it to half leaves the base alone.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import ClassVar

import torch
from diffusers import AutoencoderKL, ModelMixin
from torch import Tensor, nn

from tudsr_export.fold import (
    bake_one_step,
    bake_prompt,
    bake_timestep,
    scaled_post_quant_conv,
    scaled_quant_conv,
)
from tudsr_export.fold_transformer import bake_constants, bake_positions
from tudsr_export.linear_attention import guard_linear_attention
from tudsr_train.backbones.backbone import POOLED
from tudsr_train.bases.codec import Codec
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


class PosteriorEncoder(nn.Module):
    """E of any other `AutoencoderKL`, shifted and scaled: the posterior's mode alone, for its variance, which
    nobody needs, is an exponential that half cannot hold."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = copy.deepcopy(vae)
        self.vae.decoder = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        moments, codec = self.vae.get_submodule("encoder")(image), Codec(self.vae)
        if codec.vae.quant_conv is not None:
            moments = codec.vae.quant_conv(moments)
        return codec.scaled(moments[:, : codec.channels])


class CodecEncoder(nn.Module):
    """E of any other autoencoder, shifted and scaled; a posterior's mode."""

    vae: nn.Module

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = guard_linear_attention(copy.deepcopy(vae))

    def forward(self, image: Tensor) -> Tensor:
        return Codec(self.vae).encode(image)


class CodecDecoder(nn.Module):
    """D of any other autoencoder, of a scaled latent; not clamped."""

    vae: nn.Module

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = guard_linear_attention(copy.deepcopy(vae))

    def forward(self, z_H: Tensor) -> Tensor:
        return Codec(self.vae).decode(z_H)


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
        pooled = generator.conditions.get(POOLED)
        bake_timestep(self.unet, timestep, *(() if pooled is None else (pooled,)))
        bake_prompt(self.unet, generator.prompt_embeds)
        level = float(generator.level(timestep))
        # In half, a rounded c would change the contrast of the whole picture by up to 0.05 %; c is near 1, so
        # that rounding c - 1 instead does not matter.
        self.c_minus_1 = bake_one_step(self.unet, level, formula or generator.prediction_type) - 1

    def forward(self, z_L: Tensor) -> Tensor:
        return z_L + (self.c_minus_1 * z_L + self.unet(z_L, 0, None, return_dict=False)[0])


class TransformerStage(nn.Module):
    """The same of a transformer. Takes over the network of `generator` and changes it; an adapter that is
    attached stays attached, but for what it does to what is constant.

    Args:
        sides: of the latents that it will be exported for, in cells; no others can be run.
    """

    network_part: ClassVar[str] = "network"
    """Where B is among its parts."""

    def __init__(
        self, generator: Generator, timestep: int, formula: str | None = None, sides: Iterable[int] = ()
    ) -> None:
        super().__init__()
        self.network, self.backbone = guard_linear_attention(generator.unet), generator.backbone
        self.c, self.offset = generator.conditions, generator.latent_offset
        self.told = generator.noising.told(torch.tensor([timestep]), self.backbone.time_unit)
        z = torch.zeros(1, generator.codec.channels, *(self.backbone.cells(self.network),) * 2)
        bake_constants(self.network, lambda: self.predict(z))
        bake_positions(self.network, sides, functools.partial(self.backbone.ids, self.network, self.c))
        level, kind = float(generator.level(timestep)), formula or generator.prediction_type
        self.a_minus_1 = bake_one_step(self.network, level, kind, self.backbone.output_layer) - 1

    def predict(self, z: Tensor) -> Tensor:
        read = z + self.offset if self.offset else z
        return self.backbone.predict(self.network, read, self.told.expand(len(z)), self.c)

    def forward(self, z_L: Tensor) -> Tensor:
        prediction = self.predict(z_L)
        return z_L + (self.a_minus_1 * z_L + prediction if self.a_minus_1 else prediction)


def stage_graph(generator: Generator, timestep: int, formula: str, sides: Iterable[int]) -> nn.Module:
    """One stage of any kind of backbone, for latents of these sides."""
    if generator.backbone.component == "unet":
        return UnetStage(generator, timestep, formula).eval()
    return TransformerStage(generator, timestep, formula, sides).eval()


def vae_graphs(vae: ModelMixin) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of any kind of autoencoder."""
    if not isinstance(vae, AutoencoderKL):
        return CodecEncoder(vae).eval(), CodecDecoder(vae).eval()
    codec = Codec(vae)
    plain = not (codec.shift_factor or codec.mean or codec.std)
    if plain and vae.quant_conv is not None and vae.post_quant_conv is not None:
        return VaeEncoder(vae).eval(), VaeDecoder(vae).eval()
    return PosteriorEncoder(vae).eval(), CodecDecoder(vae).eval()


def encoder_graph(vae: ModelMixin) -> nn.Module:
    """The encoder alone, of a stage that has its own."""
    return vae_graphs(vae)[0]
