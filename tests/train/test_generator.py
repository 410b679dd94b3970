"""Eq. 2, the patch autoencoder, and loading a base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tudsr_runtime.errors import BundleError, TrainingError
from tudsr_train.bases.folder import base_sha256
from tudsr_train.bases.patch_autoencoder import PatchAutoencoder
from tudsr_train.bases.prompt import PROMPT_FILE, prompt_of, save_prompt
from tudsr_train.generator import Generator, one_step

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
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "score"}))
    with pytest.raises(BundleError, match="'score'"):
        Generator.load(copy)


def test_the_hash_of_a_base_follows_its_contents(tmp_path: Path, tiny_base: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_base, copy)
    first = Generator.load(tiny_base).base_sha256
    assert Generator.load(copy).base_sha256 == first
    save_prompt(copy, torch.zeros(1, 8, 16))
    assert Generator.load(copy).base_sha256 != first


def _copy(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        # scheduler_config.json of SD 1.5, SD 2.1-base, SD-Turbo and SD 2.1 (768 px)
        (PNDMScheduler, {"skip_prk_steps": True, "steps_offset": 1}),
        (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
        (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
        (DDIMScheduler, {"prediction_type": "v_prediction"}),
    ],
)
def test_any_scheduler_of_stable_diffusion_gives_its_schedule_and_prediction(
    kind: type, changes: dict[str, object], tmp_path: Path, stable_diffusion_like_base: Path
) -> None:
    base = _copy(stable_diffusion_like_base, tmp_path / "base")
    shutil.rmtree(base / "scheduler")
    scheduler = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **changes)
    scheduler.save_pretrained(base / "scheduler")
    G = Generator.load(base)
    assert torch.equal(G.alphas_cumprod, scheduler.alphas_cumprod)
    assert float(G.alphas_cumprod[200]) == pytest.approx(0.75369173)
    assert G.prediction_type == changes.get("prediction_type", "epsilon")


def test_the_schedule_of_stable_diffusion_at_the_papers_timesteps() -> None:
    t_1, t_2 = (float(SCHEDULER.alphas_cumprod[t]) for t in (200, 50))
    assert (t_1, t_2) == (pytest.approx(0.75369173), pytest.approx(0.95157665))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_generator_whose_unet_knows_the_noise_returns_the_clean_picture(
    generator: Generator, prediction_type: str
) -> None:
    x_H = torch.rand(2, 3, 32, 32) * 1.8 - 0.9
    noise, abar = torch.randn(2, 48, 12, 12), SCHEDULER.alphas_cumprod[200]
    z_H = generator.encode(x_H)
    z_L = abar.sqrt() * z_H + (1 - abar).sqrt() * noise
    velocity = abar.sqrt() * noise - (1 - abar).sqrt() * z_H

    class Oracle(torch.nn.Module):
        def forward(self, *_: object, **__: object) -> tuple[torch.Tensor]:
            return (noise if prediction_type == "epsilon" else velocity,)

    G = Generator(generator.vae, Oracle(), torch.zeros(1, 1, 1), SCHEDULER.alphas_cumprod, prediction_type)
    assert torch.allclose(G.decode(G.denoise(z_L, 200)), x_H, atol=1e-5)


def test_one_prompt_serves_a_batch(stable_diffusion_like_base: Path) -> None:
    G = Generator.load(stable_diffusion_like_base)
    z_L = torch.randn(3, 4, 16, 16)
    with torch.no_grad():
        assert torch.allclose(G.predict(z_L, 50), torch.cat([G.predict(z[None], 50) for z in z_L]), atol=1e-5)


def test_training_can_sample_the_posterior(stable_diffusion_like_base: Path) -> None:
    G = Generator.load(stable_diffusion_like_base)
    x_L = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        posterior = G.vae.encode(x_L).latent_dist
        torch.manual_seed(3)
        sampled = G.encode(x_L, sample=True) / G.scaling_factor
        torch.manual_seed(3)
        noise = torch.randn_like(posterior.mean)
        assert torch.allclose(sampled, posterior.mean + posterior.std * noise, atol=1e-6)
        torch.testing.assert_close(G.encode(x_L), posterior.mean * G.scaling_factor)


def test_gradient_checkpointing_keeps_less_and_changes_nothing(stable_diffusion_like_base: Path) -> None:
    x_L = torch.rand(1, 3, 32, 32) * 2 - 1
    kept, gradients = [], []
    for checkpointing in (False, True):
        G = Generator.load(stable_diffusion_like_base)
        G.unet.requires_grad_(True)
        if checkpointing:
            G.enable_gradient_checkpointing()
        sizes: list[int] = []

        def pack(x: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(x.nbytes)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = G(x_L, 200).square().sum()
        kept.append(sum(sizes))
        loss.backward()
        gradients.append(G.unet.conv_in.weight.grad)
    assert kept[1] < 0.6 * kept[0]
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


WORDS = ["<|startoftext|>", "<|endoftext|>", "a</w>", "a"]


@pytest.fixture(scope="module")
def base_with_text_encoder(
    tmp_path_factory: pytest.TempPathFactory, stable_diffusion_like_base: Path
) -> Path:
    base = _copy(stable_diffusion_like_base, tmp_path_factory.mktemp("text") / "base")
    shutil.rmtree(base / "prompt")
    tokenizer = CLIPTokenizer(
        vocab={word: i for i, word in enumerate(WORDS)},
        merges=[], model_max_length=6, pad_token="<|endoftext|>",
    )  # fmt: skip
    tokenizer.save_pretrained(base / "tokenizer")
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=6, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(base / "text_encoder")
    return base


def test_the_prompt_is_encoded_once_and_the_encoder_dropped(base_with_text_encoder: Path) -> None:
    G = Generator.load(base_with_text_encoder)
    encoder = CLIPTextModel.from_pretrained(base_with_text_encoder / "text_encoder")
    with torch.no_grad():
        expected = encoder(torch.tensor([[0, 1, 1, 1, 1, 1]]))[0]
    assert torch.allclose(G.prompt_embeds, expected, atol=1e-6)
    assert {name for name, _ in G.named_children()} == {"vae", "unet", "noising"}
    other = Generator.load(base_with_text_encoder, prompt="a")
    assert other.prompt_embeds.shape == expected.shape
    assert not torch.allclose(other.prompt_embeds, expected, atol=1e-3)
    with pytest.raises(TrainingError, match="tokens, but 6 fit"):
        Generator.load(base_with_text_encoder, prompt="a a a a a a a a a")


def test_a_users_own_embedding_comes_first(base_with_text_encoder: Path, tmp_path: Path) -> None:
    own = torch.randn(1, 3, 16)
    save_prompt(tmp_path, own)
    G = Generator.load(base_with_text_encoder, prompt_file=tmp_path / PROMPT_FILE)
    assert torch.equal(G.prompt_embeds, own)
    with pytest.raises(BundleError, match="no prompt embedding can be read"):
        Generator.load(base_with_text_encoder, prompt_file=tmp_path / "none.safetensors")


def test_a_stored_prompt_cannot_become_another_one(tiny_base: Path) -> None:
    with pytest.raises(BundleError, match="cannot encode 'a photo'"):
        prompt_of(tiny_base, "a photo")


def test_a_base_that_lacks_weights_is_refused_instead_of_filled_at_random(
    tmp_path: Path, tiny_base: Path
) -> None:
    base = _copy(tiny_base, tmp_path / "base")
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if k != "conv_in.weight"}, weights)
    with pytest.raises(BundleError, match=r"lacks 1 weights: conv_in\.weight"):
        Generator.load(base)


def test_a_base_with_conditions_that_nobody_gives_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    base = _copy(tiny_base, tmp_path / "base")
    config = json.loads((base / "unet" / "config.json").read_text())
    other = {"addition_embed_type": "text", "addition_embed_type_num_heads": 4}
    UNet2DConditionModel.from_config({**config, **other}).save_pretrained(base / "unet")
    with pytest.raises(BundleError, match=r"needs more than a prompt \(text\)"):
        Generator.load(base)


def test_an_xl_base_needs_its_pooled_prompt(tmp_path: Path, tiny_base: Path) -> None:
    base = _copy(tiny_base, tmp_path / "base")
    config = json.loads((base / "unet" / "config.json").read_text())
    xl = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    }
    UNet2DConditionModel.from_config({**config, **xl}).save_pretrained(base / "unet")
    with pytest.raises(BundleError, match="lacks pooled_prompt_embeds"):
        Generator.load(base)


def test_a_base_comes_from_the_hubs_cache_by_its_id(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "models--owner--base"
    shutil.copytree(tiny_base, model / "snapshots" / "0" / "")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    G = Generator.load("owner/base")
    assert G.base_id == "owner/base"
    assert G.base_sha256 == Generator.load(tiny_base).base_sha256
    with pytest.raises(BundleError, match="owner/none: no such folder, and not to be had from the Hugging"):
        Generator.load("owner/none")


def test_other_versions_of_the_weights_do_not_change_the_hash_of_a_base(
    tmp_path: Path, tiny_base: Path
) -> None:
    base = _copy(tiny_base, tmp_path / "base")
    before = base_sha256(base)
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin", "README.md"):
        (base / "unet" / name).write_bytes(b"x")
    assert base_sha256(base) == before
    (base / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    assert base_sha256(base) != before
