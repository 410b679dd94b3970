"""Eq. 2, the patch autoencoder, and loading a base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st

from tudsr_runtime.errors import BundleError
from tudsr_train.generator import Generator, one_step, save_prompt
from tudsr_train.patch_autoencoder import PatchAutoencoder

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@given(t=st.integers(0, 999), seed=st.integers(0, 99))
def test_a_prediction_that_knows_the_noise_restores_the_latent_exactly(t: int, seed: int) -> None:
    torch.manual_seed(seed)
    z_H, noise = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    alpha_t = SCHEDULER.alphas_cumprod[t].double()
    steps = torch.tensor([t])
    # add_noise computes its factors from float32 alphas; the same ones make the identity exact
    z_L = alpha_t.sqrt() * z_H + (1 - alpha_t).sqrt() * noise
    velocity = alpha_t.sqrt() * noise - (1 - alpha_t).sqrt() * z_H
    assert torch.allclose(z_L, SCHEDULER.add_noise(z_H, noise, steps), atol=1e-6)
    assert torch.allclose(one_step(z_L, noise, alpha_t), z_H, atol=1e-9)
    assert torch.allclose(one_step(z_L, velocity, alpha_t, "v_prediction"), z_H, atol=1e-9)


def test_one_step_equals_the_x0_of_the_reference_scheduler() -> None:
    z_L, prediction = torch.randn(2, 1, 4, 8, 8)
    for kind in ("epsilon", "v_prediction"):
        scheduler = DDPMScheduler.from_config(SCHEDULER.config, prediction_type=kind, clip_sample=False)
        scheduler.set_timesteps(1000)
        expected = scheduler.step(prediction, 200, z_L).pred_original_sample
        assert torch.allclose(
            one_step(z_L, prediction, scheduler.alphas_cumprod[200], kind), expected, atol=1e-5
        )


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_the_patch_autoencoder_loses_nothing(patch: int) -> None:
    vae = PatchAutoencoder(patch_size=patch, latent_channels=3 * patch**2)
    image = torch.rand(2, 3, 16, 24)
    latent = vae.encode(image).latent_dist
    assert latent.mode().shape == (2, 3 * patch**2, 16 // patch, 24 // patch)
    assert torch.equal(latent.sample(), latent.mode())
    assert torch.equal(vae.decode(latent.mode()).sample, image)


def test_a_margin_is_reflected_and_cut_off_again() -> None:
    vae = PatchAutoencoder(patch_size=2, latent_channels=12, margin=4)
    image = torch.rand(1, 3, 16, 24)
    latent = vae.encode(image).latent_dist.mode()
    assert latent.shape == (1, 12, 12, 16)
    inside = torch.nn.functional.pixel_unshuffle(image, 2)
    assert torch.equal(latent[..., 2:-2, 2:-2], inside)
    assert torch.equal(vae.decode(latent).sample, image)
    with pytest.raises(ValueError, match="no multiple"):
        PatchAutoencoder(patch_size=4, margin=6)


def test_a_patch_autoencoder_with_the_wrong_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="12 values"):
        PatchAutoencoder(patch_size=2, latent_channels=48)


def test_an_untrained_nano_base_is_nearly_the_identity(generator: Generator) -> None:
    x_L = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert (generator(x_L, 200) - x_L).abs().max() <= 0.011
    assert generator.pixels_per_cell == 4
    assert float(generator.alphas_cumprod[200]) == pytest.approx(0.98, abs=0.001)


def test_eq_2_through_a_stable_diffusion_like_base_equals_plain_diffusers(
    stable_diffusion_like_base: Path,
) -> None:
    G = Generator.load(stable_diffusion_like_base)
    x_L = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        z_L = G.vae.encode(x_L).latent_dist.mean * 0.18215
        eps = G.unet(z_L, 200, encoder_hidden_states=G.prompt_embeds.repeat(2, 1, 1)).sample
        abar = SCHEDULER.alphas_cumprod[200]
        expected = G.vae.decode((z_L - (1 - abar) ** 0.5 * eps) / abar**0.5 / 0.18215).sample.clamp(-1, 1)
        assert torch.allclose(G(x_L, 200), expected, atol=1e-5)
    assert G.pixels_per_cell == 2
    assert not any(p.requires_grad for p in G.parameters())


def test_a_base_that_lacks_a_part_or_does_not_fit_is_named(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(BundleError, match=r"unet/config\.json is missing"):
        Generator.load(tmp_path)
    for part, message in (
        ("prompt", "prompt is unknown"),
        ("scheduler", "cannot be read"),
        ("vae", "cannot be read"),
    ):
        copy = tmp_path / part
        shutil.copytree(tiny_base, copy)
        shutil.rmtree(copy / part)
        with pytest.raises(BundleError, match=message):
            Generator.load(copy)
    copy = tmp_path / "width"
    shutil.copytree(tiny_base, copy)
    save_prompt(copy, torch.randn(1, 8, 99))
    with pytest.raises(BundleError, match="99 wide"):
        Generator.load(copy)


def test_an_inpainting_base_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    config = json.loads((copy / "unet" / "config.json").read_text())
    wider = {**config, "in_channels": 97}
    UNet2DConditionModel.from_config(wider).save_pretrained(copy / "unet")
    with pytest.raises(BundleError, match="takes 97 and gives 48"):
        Generator.load(copy)


def test_a_base_that_predicts_something_else_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(BundleError, match="'sample'"):
        Generator.load(copy)


def test_the_hash_of_a_base_follows_its_contents(tmp_path: Path, tiny_base: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_base, copy)
    first = Generator.load(tiny_base).base_sha256
    assert Generator.load(copy).base_sha256 == first
    save_prompt(copy, torch.zeros(1, 8, 16))
    assert Generator.load(copy).base_sha256 != first
