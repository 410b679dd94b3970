"""D over latents: features against diffusers' own forward, conditions, LoRA, timesteps, the MLP, weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from tudsr_runtime.errors import TrainingError
from tudsr_train.adapters import add_adapter
from tudsr_train.discriminators.base import DiscriminatorConfig, build_discriminator
from tudsr_train.discriminators.diffusion import DiffusionDiscriminator, PatchMLP
from tudsr_train.generator import Generator

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SD_LIKE: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
SDXL_LIKE = SD_LIKE | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 10,
}
FAMILIES = pytest.mark.parametrize("family", [SD_LIKE, SDXL_LIKE], ids=["sd", "sdxl"])


def _unet(family: dict[str, Any], channels: int = 4) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**family, in_channels=channels, out_channels=channels)


def _discriminator(family: dict[str, Any], rank: int = 4) -> DiffusionDiscriminator:
    D = DiffusionDiscriminator(_unet(family), torch.randn(1, 5, 16), SCHEDULER.alphas_cumprod, 8, rank)
    D.requires_grad_(True).train()
    return D


@FAMILIES
def test_features_are_the_mid_block_of_diffusers_own_forward(family: dict[str, Any]) -> None:
    D, whole, seen = _discriminator(family), _unet(family).eval(), list[Tensor]()
    whole.mid_block.register_forward_hook(lambda *hooked: seen.append(hooked[2]))
    z_t, t = torch.randn(2, 4, 16, 24), torch.tensor([3, 700])
    sizes = torch.tensor([128.0, 192, 0, 0, 128, 192]).expand(2, -1)
    added = {"text_embeds": torch.zeros(2, 10), "time_ids": sizes} if family is SDXL_LIKE else None
    with torch.no_grad():
        whole(z_t, t, D.prompt_embeds.expand(2, -1, -1), added_cond_kwargs=added)
        torch.testing.assert_close(D.features(z_t, t), seen[0])  # a fresh LoRA changes nothing
    assert [logits.shape for logits in D(z_t)] == [(2, 1, 8, 12)]


@FAMILIES
def test_the_lora_is_in_the_down_and_mid_blocks_alone(family: dict[str, Any]) -> None:
    D = _discriminator(family, rank=4)
    lora = {name for name in D.trainable() if "lora_" in name}
    assert {*D.trainable()} - lora == {f"heads.{name}" for name, _ in D.heads.named_parameters()}
    places = {name.split(".")[1] for name in lora}
    assert places == {"down_blocks", "mid_block"}
    layers = {name.split(".lora_")[0].split(".")[-1].replace("0", "to_out") for name in lora}
    assert layers == {"conv", "conv1", "conv2", "conv_shortcut", "to_q", "to_k", "to_v", "to_out"}
    assert not any(name.startswith("backbone.up_blocks") for name, _ in D.named_parameters())
    assert D.backbone.peft_config["discriminator"].lora_alpha == 4
    assert {name for name, p in D.named_parameters() if p.requires_grad} == {*D.trainable()}


def test_gradients_reach_the_latent_or_d_and_never_both() -> None:
    D = _discriminator(SDXL_LIKE)
    z = torch.randn(1, 4, 16, 16, requires_grad=True)
    with D.frozen():
        D(z)[0].sum().backward()
    assert z.grad is not None
    assert z.grad.abs().max() > 0
    assert all(p.grad is None for p in D.parameters())
    D(z.detach())[0].sum().backward()
    assert {name for name, p in D.named_parameters() if p.grad is not None} == {*D.trainable()}
    assert not any(module.training for module in D.backbone.modules())


def test_noise_is_added_as_the_scheduler_adds_it() -> None:
    D, z = _discriminator(SD_LIKE), torch.randn(3, 4, 16, 16)
    D.rng = torch.Generator().manual_seed(0)
    z_t, t = D.diffuse(z)
    alpha = SCHEDULER.alphas_cumprod[t].view(-1, 1, 1, 1)
    eps = (z_t - alpha.sqrt() * z) / (1 - alpha).sqrt()
    assert torch.allclose(z_t, SCHEDULER.add_noise(z, eps, t), atol=1e-5)
    assert eps.mean().item() == pytest.approx(0, abs=0.1)
    assert eps.std().item() == pytest.approx(1, abs=0.1)


def test_timesteps_are_drawn_from_the_generator_one_for_each_latent() -> None:
    D = _discriminator(SD_LIKE)
    draws = []
    for seed in (0, 0, 1):
        D.rng = torch.Generator().manual_seed(seed)
        draws.append(D.diffuse(torch.zeros(4000, 1, 1, 1))[1])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert draws[0].min() < 10
    assert draws[0].max() > 989
    assert draws[0].float().mean().item() == pytest.approx(499.5, abs=25)
    D.rng = torch.Generator().manual_seed(0)
    first = D(torch.zeros(1, 4, 16, 16))[0]
    assert not torch.equal(first, D(torch.zeros(1, 4, 16, 16))[0])


def test_the_mlp_scores_every_cell_by_itself() -> None:
    mlp, x = PatchMLP(16), torch.randn(1, 16, 5, 7)
    logits, flipped = mlp(x), mlp(x.flip(-1))
    assert logits.shape == (1, 1, 5, 7)
    assert torch.allclose(flipped, logits.flip(-1), atol=1e-6)
    changed = x.clone()
    changed[..., 2, 3] = torch.randn(16)  # another direction: a LayerNorm undoes an addition
    difference = (mlp(changed) - logits).abs()[0, 0]
    assert (difference > 1e-4).nonzero().tolist() == [[2, 3]]


def test_a_checkpoint_brings_back_the_lora_and_the_mlp() -> None:
    first, second = _discriminator(SDXL_LIKE), _discriminator(SDXL_LIKE)
    second.prompt_embeds.copy_(first.prompt_embeds)
    for parameter in first.trainable().values():
        nn.init.normal_(parameter, std=0.1)
    state = first.checkpoint_state()
    assert state.keys() == first.trainable().keys()
    second.load_checkpoint_state(state)
    z_t, t = torch.randn(1, 4, 16, 16), torch.tensor([100])
    torch.testing.assert_close(
        first.heads[0](first.features(z_t, t)), second.heads[0](second.features(z_t, t))
    )


def test_the_base_itself_as_discriminator_leaves_the_generator_as_it_was(generator: Generator) -> None:
    plain = copy.deepcopy(generator.unet)
    add_adapter(generator, "stage1", 4, ("to_q", "conv1"))
    for name, parameter in generator.unet.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    before = {name: p.clone() for name, p in generator.unet.named_parameters()}
    D = build_discriminator(DiscriminatorConfig("diffusion", "base", lora_rank=2), generator)
    assert isinstance(D, DiffusionDiscriminator)
    assert D.space == "latent"
    after = dict(generator.unet.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], p) for name, p in after.items())
    seen = list[Tensor]()
    plain.mid_block.register_forward_hook(lambda *hooked: seen.append(hooked[2]))
    z = generator.encode(torch.rand(1, 3, 32, 32) * 2 - 1)
    t = torch.tensor([50])
    with torch.no_grad():
        plain(z, t, generator.prompt_embeds)
        torch.testing.assert_close(D.features(z, t), seen[0])


def test_an_untrained_one_takes_the_bases_latents(generator: Generator) -> None:
    D = build_discriminator(DiscriminatorConfig("diffusion", "random", width=32), generator)
    z = generator.encode(torch.rand(2, 3, 64, 64) * 2 - 1)
    (logits,) = D(z)
    assert logits.shape[:2] == (2, 1)
    assert logits.shape[-1] == z.shape[-1] // 2


@FAMILIES
def test_any_diffusers_folder_can_be_taken(
    family: dict[str, Any], generator: Generator, tmp_path: Path
) -> None:
    channels = generator.unet.config.in_channels
    _unet(family, channels).save_pretrained(tmp_path / "unet")
    SCHEDULER.save_pretrained(tmp_path / "scheduler")
    D = build_discriminator(DiscriminatorConfig("diffusion", str(tmp_path), lora_rank=2), generator)
    assert isinstance(D, DiffusionDiscriminator)
    assert torch.equal(D.alphas_cumprod, SCHEDULER.alphas_cumprod)
    if family is SDXL_LIKE:  # its empty prompt is zero
        assert torch.equal(D.prompt_embeds, torch.zeros(1, 77, 16))
    else:
        assert torch.equal(D.prompt_embeds, generator.prompt_embeds)
    assert D(torch.randn(1, channels, 16, 16))[0].isfinite().all()


# diffusers passes the hub an argument that the hub has retired
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument")
def test_what_does_not_fit_is_refused(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for weights in (str(tmp_path), ""):
        with pytest.raises(TrainingError, match="no diffusion discriminator at") as caught:
            build_discriminator(DiscriminatorConfig("diffusion", weights), generator)
        assert "discriminator.weights" in str(caught.value.hint)
    _unet(SD_LIKE, 4).save_pretrained(tmp_path / "unet")
    SCHEDULER.save_pretrained(tmp_path / "scheduler")
    with pytest.raises(TrainingError, match="takes latents of 4 channels, but the base makes 48"):
        build_discriminator(DiscriminatorConfig("diffusion", str(tmp_path)), generator)
    _unet(SD_LIKE | {"cross_attention_dim": 24}, 48).save_pretrained(tmp_path / "unet")
    with pytest.raises(TrainingError, match="16 channels where this UNet takes 24"):
        build_discriminator(DiscriminatorConfig("diffusion", str(tmp_path)), generator)


def test_sizes_at_full_scale() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == 2567  # SDXL 1.0
        D = DiffusionDiscriminator(unet, torch.empty(1, 77, 2048), SCHEDULER.alphas_cumprod.to("meta"), 8, 16)
        logits = D.heads[0](D.features(torch.empty(1, 4, 64, 64), torch.empty(1, dtype=torch.long)))
    assert logits.shape == (1, 1, 16, 16)
    lora = [p.numel() for name, p in D.trainable().items() if "lora_" in name]
    frozen = sum(p.numel() for p in D.backbone.parameters()) - sum(lora)
    assert (round(frozen / 1e6), len(lora) // 2, round(sum(lora) / 1e6, 2)) == (1243, 292, 13.72)
    assert sum(p.numel() for p in D.heads.parameters()) == 823_041
