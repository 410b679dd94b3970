"""Constants of a stage, folded into weights: the timestep, the prompt, Eq. (2) and the latent's scale.

Each function changes the module that it is given. What it computes changes by float32 rounding only;
what falls away is inputs (timestep, prompt) and the layers that only served them.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tudsr_runtime.errors import BundleError
from tudsr_train.backbones.unet import XL, UNet
from tudsr_train.step import one_step_weights


class Constant(nn.Module):
    """Returns one stored value, whatever it is called with."""

    value: Tensor | None

    def __init__(self, value: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, *_: object) -> Tensor | None:
        return self.value


class PerPicture(Constant):
    """One stored value (1, L, C), once for every picture of the batch that it is called with.

    A single one would not fail: attention would deal its L tokens out among the pictures.
    """

    def forward(self, x: Tensor, *_: object) -> Tensor | None:  # type: ignore[override]  # it looks at x
        return self.value if self.value is None else self.value.expand(x.shape[0], -1, -1)


@torch.no_grad()
def bake_timestep(unet: ModelMixin, timestep: int, pooled: Tensor | None = None) -> None:
    """Fold the time embedding of `timestep` into the bias of every residual block's first convolution.

    A block computes conv1(h) + time_emb_proj(silu(emb)), and emb depends on the timestep alone, and in
    Stable Diffusion XL on the pooled prompt (1, P) and on sizes, which are constants as well.

    Raises:
        BundleError: the UNet conditions on time, or on more than time, in another way.
    """
    _require_plain_conditioning(unet)
    sample = torch.zeros(1, 1, dtype=unet.dtype)
    embedding = unet.time_embedding(unet.get_time_embed(sample, torch.tensor([timestep])))
    if pooled is not None:
        added = {"text_embeds": pooled, "time_ids": UNet.sizes(unet, sample)}
        embedding = embedding + unet.get_aug_embed(embedding, None, added)
        unet.add_embedding = None
        unet.register_to_config(addition_embed_type=None)
    if unet.time_embed_act is not None:
        embedding = unet.time_embed_act(embedding)
    for block in unet.modules():
        if isinstance(block, ResnetBlock2D):
            activated = embedding if block.skip_time_act else block.nonlinearity(embedding)
            plain(block.conv1).get_parameter("bias").add_(block.time_emb_proj(activated)[0])
            block.time_emb_proj = None
    unet.time_proj, unet.time_embedding = Constant(torch.zeros(1)), Constant(None)


def _require_plain_conditioning(unet: ModelMixin) -> None:
    for key in ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type"):
        if unet.config.get(key) not in (None, XL):
            raise BundleError(f"the base's UNet has {key} = {unet.config[key]!r}, which cannot be exported")
    shift = unet.config.get("resnet_time_scale_shift", "default")
    if shift != "default":
        raise BundleError(
            f"the base's UNet has resnet_time_scale_shift = {shift!r}, which cannot be exported"
        )


@torch.no_grad()
def bake_prompt(unet: ModelMixin, prompt_embeds: Tensor) -> None:
    """Replace keys and values of every cross attention by what they are for `prompt_embeds` (1, L, D)."""
    for attention in unet.modules():
        if isinstance(attention, Attention) and attention.is_cross_attention:
            attention.to_k = PerPicture(attention.to_k(prompt_embeds))
            attention.to_v = PerPicture(attention.to_v(prompt_embeds))


@torch.no_grad()
def bake_one_step(unet: ModelMixin, level: float, formula: str, output_layer: str = "conv_out") -> float:
    """Scale the last layer so that z_H = a z_L + unet(z_L); returns a (`one_step_weights`)."""
    a, b = one_step_weights(level, formula)
    layer = unet.get_submodule(output_layer)
    for parameter in plain(layer).parameters(recurse=False):
        parameter.mul_(b)
    if isinstance(layer, BaseTunerLayer):
        for product in layer.lora_B.values():
            product.weight *= b
    return float(a)


def plain(layer: nn.Module) -> nn.Conv2d:
    """The layer itself, a convolution or a linear one, below a LoRA that is attached to it."""
    return cast(nn.Conv2d, layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer)


@torch.no_grad()
def scaled_quant_conv(vae: ModelMixin) -> nn.Conv2d:
    """`quant_conv` of an `AutoencoderKL`, reduced to the posterior's mode and times the scaling factor.

    Its other half of rows makes the posterior's variance, which a mode does not need. A LoRA on it is merged.
    """
    channels, s = vae.config.latent_channels, vae.config.scaling_factor
    layer = copy.deepcopy(vae.quant_conv)
    if isinstance(layer, BaseTunerLayer):
        layer.merge(safe_merge=True)
    merged = plain(layer)
    conv = nn.Conv2d(merged.in_channels, channels, kernel_size=1)
    for name, parameter in conv.named_parameters():
        parameter.copy_(merged.get_parameter(name)[:channels] * s)
    return conv


@torch.no_grad()
def scaled_post_quant_conv(vae: ModelMixin) -> nn.Conv2d:
    """`post_quant_conv` of an `AutoencoderKL` for a latent that is still times the scaling factor."""
    conv: nn.Conv2d = copy.deepcopy(vae.post_quant_conv)
    conv.weight /= vae.config.scaling_factor
    return conv
