"""Tiny random checkpoints laid out exactly as other projects save them, and those projects' own loading.

Written from what their code does, not with ours: models come out with their adapters attached and active.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

LONG = (
    "to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out",
    "proj_out", "proj_in", "ff.net.2", "ff.net.0.proj",
)  # fmt: skip
SHORT = (
    "conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", "to_k", "to_q", "to_v", "to_out.0",
)  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """A base's models with a peer's adapters attached, and how the peer uses them."""

    unet: nn.Module
    vae: AutoencoderKL
    timestep: int
    residual: bool = False

    @torch.no_grad()
    def restore(self, base: Path, prompt_embeds: Tensor, image: Tensor) -> Tensor:
        """One tile, (1, 3, T, T) in [-1, 1], with the mode where the peer samples."""
        z = self.vae.encode(image).latent_dist.mean * self.vae.config.scaling_factor
        predicted = self.unet(z, self.timestep, encoder_hidden_states=prompt_embeds).sample
        abar = DDPMScheduler.from_pretrained(base / "scheduler").alphas_cumprod[self.timestep]
        denoised = z - predicted if self.residual else (z - (1 - abar).sqrt() * predicted) / abar.sqrt()
        return self.vae.decode(denoised / self.vae.config.scaling_factor).sample.clamp(-1, 1)


def models(base: Path) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    # PEFT writes the base's name into its files, and cannot read a Path back.
    unet = UNet2DConditionModel.from_pretrained(str(base / "unet")).eval()
    return unet, AutoencoderKL.from_pretrained(str(base / "vae")).eval()


def randomise(model: nn.Module, seed: int) -> None:
    """Adapters that do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def parts(model: nn.Module) -> dict[str, list[str]]:
    """OSEDiff's three lists of module names."""
    lists: dict[str, list[str]] = {"encoder": [], "decoder": [], "others": []}
    for name, _ in model.named_parameters():
        if "bias" in name or "norm" in name or not any(pattern in name for pattern in LONG):
            continue
        down = "down_blocks" in name or "conv_in" in name
        up = "up_blocks" in name or "conv_out" in name
        lists["encoder" if down else "decoder" if up else "others"].append(name.replace(".weight", ""))
    return lists


def add(model: nn.Module, rank: int, modules: list[str], name: str) -> None:
    config = LoraConfig(r=rank, init_lora_weights="gaussian", target_modules=modules)
    model.add_adapter(config, adapter_name=name)


def osediff(base: Path, file: Path) -> Peer:
    """OSEDiff: `OSEDiff_gen.save_model`, with `conv_in` trained whole."""
    unet, vae = models(base)
    lists = parts(unet)
    for part, names in lists.items():
        add(unet, 4, names, f"default_{part}")
    encoder = [
        name.replace(".weight", "")
        for name, _ in vae.named_parameters()
        if not ("bias" in name or "norm" in name)
        and (
            ("encoder" in name and any(pattern in name for pattern in SHORT))
            or ("quant_conv" in name and "post_quant_conv" not in name)
        )
    ]
    add(vae, 4, encoder, "default_encoder")
    randomise(unet, 1)
    randomise(vae, 2)
    unet.conv_in.base_layer.weight.data *= 1.1
    unet.set_adapter([f"default_{part}" for part in lists])
    saved = {
        "vae_lora_encoder_modules": encoder,
        **{f"unet_lora_{part}_modules": names for part, names in lists.items()},
        "rank_unet": 4,
        "rank_vae": 4,
        "state_dict_unet": {k: v for k, v in unet.state_dict().items() if "lora" in k or "conv_in" in k},
        "state_dict_vae": {k: v for k, v in vae.state_dict().items() if "lora" in k},
    }
    torch.save(saved, file)
    return Peer(unet, vae, 999)


def pisa_sr(base: Path, file: Path) -> Peer:
    """PiSA-SR: `PiSASR.save_model`; both kinds of adapter used together."""
    unet, vae = models(base)
    lists = parts(unet)
    names = [f"default_{part}_{kind}" for kind in ("pix", "sem") for part in lists]
    for name in names:
        add(unet, 4, lists[name.split("_")[1]], name)
    randomise(unet, 3)
    unet.set_adapter(names)
    saved = {f"unet_lora_{part}_modules_{kind}": lists[part] for kind in ("pix", "sem") for part in lists} | {
        "lora_rank_unet_pix": 4,
        "lora_rank_unet_sem": 4,
        "state_dict_unet": {k: v for k, v in unet.state_dict().items() if "lora" in k},
    }
    torch.save(saved, file)
    return Peer(unet, vae, 1, residual=True)


def omgsr(base: Path, folder: Path) -> Peer:
    """OMGSR: PEFT's own `save_pretrained` of the UNet and of the VAE's encoder, side by side."""
    unet, vae = models(base)
    names = {"unet": "unet_lora_adapter", "encoder": "vae_encoder_lora_adapter"}

    def wrapped(model: nn.Module, rank: int, name: str) -> PeftModel:
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(SHORT), init_lora_weights="gaussian")
        return PeftModel(model=model, peft_config=config, adapter_name=name)

    adapted = wrapped(unet, 8, names["unet"])
    vae.encoder = wrapped(vae.encoder, 4, names["encoder"])
    randomise(adapted, 4)
    randomise(vae, 5)
    adapted.save_pretrained(folder)
    vae.encoder.save_pretrained(folder)
    return Peer(adapted, vae, 273)


def diffusers_lora(base: Path, folder: Path, prefix: str = "") -> Peer:
    """diffusers: `save_lora_adapter`; with the prefix "unet.", as `save_lora_weights` of a pipeline."""
    unet, vae = models(base)
    config = LoraConfig(
        r=4,
        lora_alpha=12,
        target_modules=list(SHORT),
        rank_pattern={"conv_out": 2},
        alpha_pattern={"conv_out": 1},
    )
    unet.add_adapter(config, adapter_name="x")
    randomise(unet, 6)
    if prefix:
        from diffusers import StableDiffusionPipeline
        from peft.utils import get_peft_model_state_dict

        weights = get_peft_model_state_dict(unet, adapter_name="x")
        StableDiffusionPipeline.save_lora_weights(
            folder, unet_lora_layers=weights, unet_lora_adapter_metadata=config.to_dict()
        )
    else:
        unet.save_lora_adapter(folder, adapter_name="x")
    return Peer(unet, vae, 200)
