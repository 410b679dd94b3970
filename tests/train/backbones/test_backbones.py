"""Every backbone against diffusers' own pipeline, with prompts encoded by the base's own encoders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Model,
    T5EncoderModel,
)

from tests.train.backbones.bases import MAKERS, disturb, make_base
from tudsr_runtime.errors import BundleError, TrainingError
from tudsr_train.adapters import (
    adapter_parameters,
    add_adapter,
    add_vae_encoder_adapter,
    copy_adapter,
    load_adapter,
    prompt_sha256,
    record_of,
    save_adapter,
)
from tudsr_train.backbones.flux import packed, unpacked
from tudsr_train.bases.codec import Codec
from tudsr_train.bases.prompt import read_conditions, save_prompt
from tudsr_train.generator import Generator

KINDS = tuple(MAKERS)
FLOWS = ("sd3", "sana", "flux")
T, SIGMA = 200, 0.2
PROMPT = "a b"


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The base of a kind, made on first use."""
    folder = tmp_path_factory.mktemp("bases")

    def get(kind: str) -> Path:
        return folder / kind if (folder / kind).is_dir() else make_base(kind, folder / kind)

    return get


def loaded(base: Path, part: str, kind: Any, **options: Any) -> Any:
    return kind.from_pretrained(base / part, **options)


def one_euler_step(kind: str, base: Path, z: Tensor) -> Tensor:
    """z_H by the library: its pipeline takes one step of its own scheduler from sigma to 0."""
    tokenizers = {place.name: loaded(base, place.name, AutoTokenizer) for place in base.glob("tokenizer*")}
    common = {"vae": None, "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0), **tokenizers}
    call = {"prompt": PROMPT, "sigmas": [SIGMA], "num_inference_steps": 1, "guidance_scale": 1.0}
    side = 8 * z.shape[-1]
    if kind == "sd3":
        pipeline = diffusers.StableDiffusion3Pipeline(
            transformer=loaded(base, "transformer", diffusers.SD3Transformer2DModel),
            text_encoder=loaded(base, "text_encoder", CLIPTextModelWithProjection),
            text_encoder_2=loaded(base, "text_encoder_2", CLIPTextModelWithProjection),
            text_encoder_3=loaded(base, "text_encoder_3", T5EncoderModel, dtype=torch.bfloat16),
            **common,
        )
    elif kind == "flux":
        pipeline = diffusers.FluxPipeline(
            transformer=loaded(base, "transformer", diffusers.FluxTransformer2DModel),
            text_encoder=loaded(base, "text_encoder", CLIPTextModel),
            text_encoder_2=loaded(base, "text_encoder_2", T5EncoderModel, dtype=torch.bfloat16),
            **common,
        )
    else:
        pipeline = diffusers.SanaPipeline(
            transformer=loaded(base, "transformer", diffusers.SanaTransformer2DModel),
            text_encoder=loaded(base, "text_encoder", Gemma2Model, dtype=torch.bfloat16),
            **common,
        )
        call |= {"complex_human_instruction": None, "use_resolution_binning": False}
        side = 32 * z.shape[-1]
    pipeline.set_progress_bar_config(disable=True)
    if kind == "flux":
        embeds, pooled, _ = pipeline.encode_prompt(call.pop("prompt"), None)
        call |= {"prompt_embeds": embeds.float(), "pooled_prompt_embeds": pooled.float()}
    latents = pipeline._pack_latents(z, len(z), *z.shape[1:]) if kind == "flux" else z
    result = pipeline(latents=latents, height=side, width=side, output_type="latent", **call).images
    return pipeline._unpack_latents(result, side, side, 8) if kind == "flux" else result


@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_equals_one_step_of_diffusers_pipeline(kind: str, bases: Callable[[str], Path]) -> None:
    G = Generator.load(bases(kind), PROMPT)
    assert G.prediction_type == "flow_prediction"
    z_L = torch.randn(1, G.codec.channels, 8, 8)
    with torch.no_grad():
        expected = one_euler_step(kind, bases(kind), z_L)
        torch.testing.assert_close(G.denoise(z_L, T), expected.float(), rtol=0, atol=1e-4)
        assert (expected - z_L).abs().max() > 0.01


def test_sdxl_equals_diffusers_unet_with_its_pipelines_conditions(bases: Callable[[str], Path]) -> None:
    base = bases("sdxl")
    G = Generator.load(base, PROMPT)
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=None,
        unet=loaded(base, "unet", diffusers.UNet2DConditionModel),
        scheduler=loaded(base, "scheduler", diffusers.DDPMScheduler),
        text_encoder=loaded(base, "text_encoder", CLIPTextModel),
        text_encoder_2=loaded(base, "text_encoder_2", CLIPTextModelWithProjection),
        tokenizer=loaded(base, "tokenizer", AutoTokenizer),
        tokenizer_2=loaded(base, "tokenizer_2", AutoTokenizer),
        add_watermarker=False,
    )
    z_L = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)
        sizes = pipeline._get_add_time_ids((64, 64), (0, 0), (64, 64), torch.float32, 8)
        added = {"text_embeds": pooled, "time_ids": sizes}
        eps = pipeline.unet(z_L, T, encoder_hidden_states=embeds, added_cond_kwargs=added).sample
        expected = pipeline.scheduler
        expected.register_to_config(clip_sample=False)
        torch.testing.assert_close(
            G.denoise(z_L, T), expected.step(eps, T, z_L).pred_original_sample, rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("kind", ["sd3", "sana"])
def test_latents_are_shifted_and_scaled_as_the_library_does(kind: str, bases: Callable[[str], Path]) -> None:
    G = Generator.load(bases(kind), PROMPT)
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        if kind == "sd3":
            expected = (G.vae.encode(x).latent_dist.mean - 0.0609) * 1.5305
            picture = G.vae.decode(expected / 1.5305 + 0.0609).sample
        else:
            expected = G.vae.encode(x).latent * 0.41407
            picture = G.vae.decode(expected / 0.41407).sample
            torch.testing.assert_close(G.encode(x, sample=True), expected)
        torch.testing.assert_close(G.encode(x), expected)
        torch.testing.assert_close(G.decode(G.encode(x)), picture)
    assert (G.pixels_per_cell, G.multiple) == ((2, 4) if kind == "sd3" else (4, 4))


def test_a_mean_and_std_per_channel_are_undone(bases: Callable[[str], Path]) -> None:
    vae = Generator.load(bases("sd3"), PROMPT).vae
    vae.register_to_config(
        latents_mean=[0.1 * n for n in range(16)], latents_std=[1.0 + n for n in range(16)]
    )
    codec, latent = Codec(vae), torch.randn(2, 16, 4, 4)
    z = codec.scaled(latent)
    torch.testing.assert_close(z[:, 3], (latent[:, 3] - 0.3) * 1.5305 / 4.0)
    torch.testing.assert_close(codec.unscaled(z), latent)


def test_a_tiny_autoencoder_has_no_posterior() -> None:
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )  # fmt: skip
    codec, x = Codec(vae), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(codec.encode(x, sample=True), vae.encode(x).latents)
        assert codec.decode(codec.encode(x)).shape == x.shape
    assert codec.pixels_per_cell == 2


def test_packing_is_diffusers_own() -> None:
    z = torch.randn(2, 16, 8, 12)
    pipeline = diffusers.FluxPipeline
    assert torch.equal(packed(z), pipeline._pack_latents(z, 2, 16, 8, 12))
    assert torch.equal(unpacked(packed(z), 8, 12), z)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_comes_back_with_all_its_conditions(
    kind: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases(kind)
    G = Generator.load(base, PROMPT)
    add_adapter(G, "x", 4, G.backbone.lora_targets["long"])
    disturb(G)
    save_adapter(G, "x", tmp_path, record_of(G, "x", 1, T, 4))
    again = Generator.load(base)
    assert load_adapter(again, tmp_path, "x") == record_of(G, "x", 1, T, 4)
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(again(x, T), G(x, T), rtol=0, atol=1e-5)
    assert again.conditions.keys() == G.conditions.keys()
    assert prompt_sha256(again.conditions) == prompt_sha256(G.conditions)
    assert prompt_sha256(G.conditions | {"prompt_embeds": G.prompt_embeds + 1}) != prompt_sha256(G.conditions)
    fresh = Generator.load(base)
    add_adapter(fresh, "y", 4, fresh.backbone.lora_targets["long"])
    copy_adapter(fresh, adapter_parameters(fresh, "y"), "y", tmp_path)


def test_a_stored_prompt_stands_for_the_encoders(bases: Callable[[str], Path], tmp_path: Path) -> None:
    G = Generator.load(bases("sd3"), PROMPT)
    base = tmp_path / "base"
    shutil.copytree(bases("sd3"), base, ignore=shutil.ignore_patterns("text_encoder*", "tokenizer*"))
    with pytest.raises(BundleError, match="the prompt is unknown"):
        Generator.load(base)
    save_prompt(base, G.conditions)
    assert prompt_sha256(Generator.load(base).conditions) == prompt_sha256(G.conditions)
    assert {*read_conditions(base / "prompt" / "prompt_embeds.safetensors")} == {*G.conditions}
    save_prompt(base, G.prompt_embeds)
    with pytest.raises(BundleError, match="lacks pooled_prompt_embeds"):
        Generator.load(base)


def test_without_its_third_encoder_zeros_take_its_place(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases("sd3"), base, ignore=shutil.ignore_patterns("*_3"))
    G, whole = Generator.load(base, PROMPT), Generator.load(bases("sd3"), PROMPT)
    text = G.prompt_embeds.shape[1] - 256
    torch.testing.assert_close(G.prompt_embeds[:, :text], whole.prompt_embeds[:, :text])
    assert not G.prompt_embeds[:, text:].any()
    assert whole.prompt_embeds[:, text:].any()


def test_few_text_tokens_are_kept_where_few_are_wanted(bases: Callable[[str], Path]) -> None:
    whole, few = (Generator.load(bases("sd3"), PROMPT, prompt_tokens=n) for n in (0, 3))
    assert torch.equal(few.prompt_embeds, whole.prompt_embeds[:, :3])
    with torch.no_grad():
        assert few.predict(torch.randn(1, 16, 8, 8), T).isfinite().all()


def changed(base: Path, part: str, **changes: object) -> None:
    path = base / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("kind", "part", "changes", "message"),
    [
        (
            "sd3",
            "transformer",
            {"_class_name": "PixArtTransformer2DModel"},
            "a PixArtTransformer2DModel, which",
        ),
        ("sd3", "transformer", {"_class_name": "UNet2DConditionModel"}, "a UNet2DConditionModel, which"),
        ("sana", "vae", {"_class_name": "AutoencoderKLWan"}, "AutoencoderDC and AutoencoderTiny are known"),
        ("sana", "vae", {"scaling_factor": -1.0}, "scaling factor is -1"),
        ("sd3", "vae", {"shift_factor": 1e999}, "cannot be read"),
        ("flux", "transformer", {"in_channels": 32}, "latents have 16 channels|cannot be read"),
    ],
)
def test_another_base_is_refused_in_a_line(
    kind: str,
    part: str,
    changes: dict[str, object],
    message: str,
    bases: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases(kind), base)
    changed(base, part, **changes)
    with pytest.raises(BundleError, match=message) as caught:
        Generator.load(base, PROMPT)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    if part == "transformer" and "_class_name" in changes:
        for known in ("SD3Transformer2DModel", "SanaTransformer2DModel", "FluxTransformer2DModel"):
            assert known in str(caught.value)


def test_what_does_not_fit_a_backbone_is_said(bases: Callable[[str], Path]) -> None:
    G = Generator.load(bases("sana"), PROMPT)
    for t in (0, 1001):
        with pytest.raises(TrainingError, match="outside the schedule of sana, 1 to 1000"):
            G.denoise(torch.randn(1, 8, 8, 8), t)
    with pytest.raises(TrainingError, match="can have no LoRA"):
        add_vae_encoder_adapter(G, "x", 4)
    G.unet.register_to_config(guidance_embeds=True)
    with pytest.raises(ValueError, match="SANA-Sprint"):
        G.backbone.refuse(G.unet)
    with pytest.raises(BundleError, match=r"attends to \(1, any length, 12\)"):
        G.set_prompt(torch.zeros(1, 3, 13))
