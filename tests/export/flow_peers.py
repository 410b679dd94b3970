"""Tiny random checkpoints of one-step methods on flow-matching bases, and those projects' own arithmetic.

Written from what their code does, with diffusers and peft alone.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from peft import LoraConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from tests.export.peers import SHORT, randomise
from tests.train.backbones.bases import make_base, write_kl

FLUX_TARGETS = (
    "x_embedder", "attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0", "attn.add_k_proj",
    "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2",
    "ff_context.net.0.proj", "ff_context.net.2",
)  # fmt: skip
SD3_TARGETS = (
    "to_k", "to_q", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "proj", "linear",
    "proj_out",
)  # fmt: skip
SD3_VAE_TARGETS = (
    "encoder.conv_in", "encoder.down_blocks.0.resnets.0.conv1", "encoder.down_blocks.0.resnets.0.conv2",
    "encoder.down_blocks.0.downsamplers.0.conv", "encoder.down_blocks.1.resnets.0.conv1",
    "encoder.down_blocks.1.resnets.0.conv2", "encoder.down_blocks.1.resnets.0.conv_shortcut",
    "encoder.mid_block.attentions.0.to_q", "encoder.mid_block.attentions.0.to_k",
    "encoder.mid_block.attentions.0.to_v", "encoder.mid_block.attentions.0.to_out.0",
    "encoder.mid_block.resnets.0.conv1", "encoder.mid_block.resnets.0.conv2", "encoder.conv_out",
    "quant_conv",
)  # fmt: skip


@dataclass(frozen=True)
class FlowPeer:
    """A base, and how the peer restores a tile (1, 3, T, T) in [-1, 1], with the mode where it samples."""

    base: Path
    restore: Callable[[Tensor], Tensor]


def omgsr_f(base: Path, folder: Path) -> FlowPeer:
    """OMGSR-F: PEFT's own `save_pretrained` of FLUX's transformer and of the VAE's encoder."""
    make_base("flux", base)
    # FLUX's own autoencoder in the place of its small one.
    shutil.rmtree(base / "vae")
    write_kl(base)
    transformer = FluxTransformer2DModel.from_pretrained(str(base / "transformer")).eval()
    vae = AutoencoderKL.from_pretrained(str(base / "vae")).eval()
    adapted = PeftModel(transformer, lora(4, FLUX_TARGETS), adapter_name="flux_adapter")
    vae.encoder = PeftModel(vae.encoder, lora(2, SHORT), adapter_name="vae_encoder_adapter")
    randomise(adapted, 21)
    randomise(vae, 22)
    adapted.save_pretrained(folder)
    vae.encoder.save_pretrained(folder)
    embeds, pooled, text_ids = flux_prompt(base)
    t = omgsr_sigma(244)

    @torch.no_grad()
    def restore(image: Tensor) -> Tensor:
        s, shift = vae.config.scaling_factor, vae.config.shift_factor
        z = (vae.encode(image).latent_dist.mode() - shift) * s
        height, width = z.shape[-2:]
        ids = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, z.device, z.dtype)
        packed = FluxPipeline._pack_latents(z, *z.shape)
        v = adapted(
            hidden_states=packed, timestep=torch.tensor([t]), guidance=torch.full((1,), 1.0),
            pooled_projections=pooled, encoder_hidden_states=embeds, txt_ids=text_ids, img_ids=ids,
            return_dict=False,
        )[0]  # fmt: skip
        z = FluxPipeline._unpack_latents(packed + (0 - t) * v, height * 8, width * 8, 8)
        return vae.decode(z / s + shift).sample.clamp(-1, 1)

    return FlowPeer(base, restore)


def omgsr_sigma(step: int) -> float:
    """FLUX's schedule of 999 steps, shifted as for 4096 tokens, counted from its end."""
    times = torch.linspace(1, 0, 1000)
    return float((math.exp(1.15) / (math.exp(1.15) + (1 / times - 1)))[-(step + 1)])


def flux_prompt(base: Path) -> tuple[Tensor, Tensor, Tensor]:
    pipeline = FluxPipeline(
        vae=None,
        transformer=None,
        scheduler=None,
        text_encoder=CLIPTextModel.from_pretrained(base / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(base / "tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(base / "text_encoder_2", dtype=torch.bfloat16),
        tokenizer_2=AutoTokenizer.from_pretrained(base / "tokenizer_2"),
    )
    with torch.no_grad():
        embeds, pooled, ids = pipeline.encode_prompt("", prompt_2=None)
    return embeds.float(), pooled.float(), ids.float()


def tsd_sr(base: Path, folder: Path) -> FlowPeer:
    """TSD-SR: LoRAs of SD 3's transformer and VAE, both saved by its pipeline, and two stored embeddings.

    Its latents are scaled, and not shifted."""
    make_base("sd3", base)
    transformer = SD3Transformer2DModel.from_pretrained(str(base / "transformer")).eval()
    vae = AutoencoderKL.from_pretrained(str(base / "vae")).eval()
    for model, targets, seed in ((transformer, SD3_TARGETS, 23), (vae, SD3_VAE_TARGETS, 24)):
        model.add_adapter(lora(4, targets))
        randomise(model, seed)
    for model, name in ((transformer, "transformer.safetensors"), (vae, "vae.safetensors")):
        weights = get_peft_model_state_dict(model, adapter_name="default")
        StableDiffusion3Pipeline.save_lora_weights(folder, transformer_lora_layers=weights, weight_name=name)
    rng = torch.Generator().manual_seed(25)
    config = transformer.config
    embeds = torch.randn(1, 9, config.joint_attention_dim, generator=rng)
    pooled = torch.randn(1, config.pooled_projection_dim, generator=rng)
    torch.save(embeds, folder / "prompt_embeds.pt")
    torch.save(pooled, folder / "pool_embeds.pt")

    @torch.no_grad()
    def restore(image: Tensor) -> Tensor:
        z = vae.encode(image).latent_dist.mode() * vae.config.scaling_factor
        v = transformer(
            hidden_states=z, timestep=torch.tensor([1000.0]), encoder_hidden_states=embeds,
            pooled_projections=pooled, return_dict=False,
        )[0]  # fmt: skip
        return vae.decode((z - v) / vae.config.scaling_factor).sample.clamp(-1, 1)

    return FlowPeer(base, restore)


def lora(rank: int, targets: tuple[str, ...]) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets))
