"""LoRA adapters: identity at birth, PEFT's own format on disk, and clear refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig, PeftModel

from tudsr_runtime.errors import BundleError, TrainingError
from tudsr_train.adapters import (
    TARGETS,
    AdapterRecord,
    adapter_parameters,
    add_adapter,
    add_vae_encoder_adapter,
    load_adapter,
    prompt_sha256,
    read_adapter_record,
    record_of,
    save_adapter,
)
from tudsr_train.backbones.unet import LONG_TARGETS
from tudsr_train.generator import Generator

SD21_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "use_linear_projection": True,
}
"""What unet/config.json of Stable Diffusion 2.1-base says, where it differs from the class's defaults."""


def _random_adapter(generator: Generator, folder: Path, name: str = "stage1", rank: int = 4) -> AdapterRecord:
    add_adapter(generator, name, rank, TARGETS)
    torch.manual_seed(1)
    for parameter in adapter_parameters(generator, name).values():
        torch.nn.init.normal_(parameter, std=0.05)
    record = record_of(generator, name, stage=1, timestep=200, factor=4)
    folder.mkdir()
    save_adapter(generator, name, folder, record)
    return record


def test_a_fresh_adapter_changes_nothing_and_is_all_that_trains(generator: Generator) -> None:
    z_L = torch.randn(1, 48, 16, 16)
    with torch.no_grad():
        before = generator.predict(z_L, 200)
        add_adapter(generator, "stage1", 32, TARGETS)
        torch.testing.assert_close(generator.predict(z_L, 200), before)
    trainable = {key for key, p in generator.unet.named_parameters() if p.requires_grad}
    assert trainable == set(adapter_parameters(generator, "stage1"))
    assert generator.unet.peft_config["stage1"].lora_alpha == 32


def test_a_saved_adapter_loads_here_and_in_peft_with_equal_results(
    generator: Generator, tiny_base: Path, tmp_path: Path
) -> None:
    record = _random_adapter(generator, tmp_path / "adapter")
    z_L = torch.randn(1, 48, 16, 16)
    with torch.no_grad():
        expected = generator.predict(z_L, 200)
        again = Generator.load(tiny_base)
        plain = again.predict(z_L, 200)
        assert load_adapter(again, tmp_path / "adapter", "other-name") == record
        assert torch.allclose(again.predict(z_L, 200), expected, atol=1e-6)
        assert not torch.allclose(plain, expected, atol=1e-3)
        third = Generator.load(tiny_base)
        third.unet = PeftModel.from_pretrained(third.unet, tmp_path / "adapter").base_model.model
        assert torch.allclose(third.predict(z_L, 200), expected, atol=1e-6)
    assert not any(p.requires_grad for p in again.parameters())


def test_damaged_or_foreign_adapters_are_refused(
    generator: Generator, tiny_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    with pytest.raises(BundleError, match=r"adapter_config\.json is missing"):
        load_adapter(generator, folder, "stage1")
    _random_adapter(generator, folder)
    record_path, weights_path = folder / "tudsr.json", folder / "adapter_model.safetensors"

    record = json.loads(record_path.read_text())
    record_path.write_text(json.dumps(record | {"base_sha256": "f" * 64}))
    with pytest.raises(BundleError, match="trained on base ffffffffffff"):
        load_adapter(Generator.load(tiny_base), folder, "stage1")
    record_path.write_text("{}")
    with pytest.raises(BundleError, match="not a record"):
        load_adapter(Generator.load(tiny_base), folder, "stage1")
    record_path.unlink()
    assert load_adapter(Generator.load(tiny_base), folder, "stage1") is None

    whole = weights_path.read_bytes()
    weights_path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match="cannot be read"):
        load_adapter(Generator.load(tiny_base), folder, "stage1")


def test_an_adapter_of_another_shape_is_refused(
    generator: Generator, tiny_base: Path, tmp_path: Path
) -> None:
    _random_adapter(generator, tmp_path / "adapter", rank=4)
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(BundleError, match="does not fit"):
        load_adapter(Generator.load(tiny_base), tmp_path / "adapter", "stage1")
    path.write_text(json.dumps(config | {"target_modules": ["to_q"]}))
    with pytest.raises(BundleError, match="have no place"):
        load_adapter(Generator.load(tiny_base), tmp_path / "adapter", "stage1")


@pytest.mark.parametrize(
    ("targets", "modules", "parameters"), [(TARGETS, 194, 25_257_216), (LONG_TARGETS, 258, 32_445_696)]
)
def test_on_stable_diffusion_2_1_base_the_adapter_has_the_published_size(
    targets: tuple[str, ...], modules: int, parameters: int
) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(SD21_UNET)
        assert sum(p.numel() for p in unet.parameters()) == 865_910_724
        unet.add_adapter(LoraConfig(r=32, lora_alpha=32, target_modules=list(targets)), adapter_name="a")
    lora = {key: p for key, p in unet.named_parameters() if "lora_" in key}
    assert len(lora) == 2 * modules
    assert sum(p.numel() for p in lora.values()) == parameters


def test_diffusers_itself_loads_a_saved_adapter(
    generator: Generator, tiny_base: Path, tmp_path: Path
) -> None:
    _random_adapter(generator, tmp_path / "adapter")
    unet = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")
    unet.load_lora_adapter(
        tmp_path / "adapter",
        prefix="base_model.model",
        weight_name="adapter_model.safetensors",
        use_safetensors=True,
    )
    z_L = torch.randn(1, 48, 16, 16)
    with torch.no_grad():
        actual = unet(z_L, 200, generator.prompt_embeds).sample
        assert torch.allclose(actual, generator.predict(z_L, 200), atol=1e-6)


@pytest.fixture
def sd(stable_diffusion_like_base: Path) -> Generator:
    return Generator.load(stable_diffusion_like_base)


def _both_parts(sd: Generator, folder: Path) -> AdapterRecord:
    add_vae_encoder_adapter(sd, "stage1", 2)
    return _random_adapter(sd, folder)


def test_a_fresh_lora_on_the_vae_encoder_changes_nothing_and_leaves_the_decoder_alone(sd: Generator) -> None:
    x_L = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before = sd.encode(x_L)
        add_vae_encoder_adapter(sd, "stage1", 2)
        torch.testing.assert_close(sd.encode(x_L), before)
    names = list(adapter_parameters(sd, "stage1"))
    assert names
    assert all(name.startswith("vae.encoder.") for name in names)
    sd(x_L, 200).sum().backward()
    with_gradient = {name for name, p in adapter_parameters(sd, "stage1").items() if p.grad is not None}
    assert with_gradient == set(names)


def test_a_lora_on_the_vae_encoder_comes_back_here_and_in_peft(
    sd: Generator, stable_diffusion_like_base: Path, tmp_path: Path
) -> None:
    record = _both_parts(sd, tmp_path / "adapter")
    assert record.vae_encoder_rank == 2
    x_L = torch.rand(1, 3, 32, 32) * 2 - 1
    again = Generator.load(stable_diffusion_like_base)
    with torch.no_grad():
        plain = again.encode(x_L)
        assert load_adapter(again, tmp_path / "adapter", "stage1") == record
        assert torch.allclose(again(x_L, 200), sd(x_L, 200), atol=1e-6)
        assert not torch.allclose(again.encode(x_L), plain, atol=1e-3)
        vae = AutoencoderKL.from_pretrained(stable_diffusion_like_base, subfolder="vae")
        peft = PeftModel.from_pretrained(vae, tmp_path / "adapter" / "vae_encoder").base_model.model
        expected = sd.encode(x_L) / sd.scaling_factor
        assert torch.allclose(peft.encode(x_L).latent_dist.mode(), expected, atol=1e-6)


def test_switching_stages_switches_the_vae_encoder_too(sd: Generator, tmp_path: Path) -> None:
    x_L = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        plain = sd.encode(x_L)
        _both_parts(sd, tmp_path / "adapter")
        adapted = sd.encode(x_L)
        add_adapter(sd, "stage2", 2, TARGETS)
        torch.testing.assert_close(sd.encode(x_L), plain)
        sd.use("stage1")
        torch.testing.assert_close(sd.encode(x_L), adapted)
        assert (adapted - plain).abs().max() > 1e-3


def test_a_missing_vae_encoder_part_is_refused(
    sd: Generator, stable_diffusion_like_base: Path, tmp_path: Path
) -> None:
    _both_parts(sd, tmp_path / "adapter")
    (tmp_path / "adapter" / "vae_encoder").rename(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"vae_encoder/\) is missing"):
        load_adapter(Generator.load(stable_diffusion_like_base), tmp_path / "adapter", "stage1")


def test_an_autoencoder_without_weights_takes_no_lora(generator: Generator) -> None:
    with pytest.raises(TrainingError, match="no weights"):
        add_vae_encoder_adapter(generator, "stage1", 4)


def test_an_adapter_brings_its_prompt(generator: Generator, tiny_base: Path, tmp_path: Path) -> None:
    generator.set_prompt(torch.randn(1, 5, 16))
    record = _random_adapter(generator, tmp_path / "adapter")
    again = Generator.load(tiny_base)
    load_adapter(again, tmp_path / "adapter", "stage1")
    assert torch.equal(again.prompt_embeds, generator.prompt_embeds)
    assert record.prompt_sha256 == prompt_sha256(again.prompt_embeds)
    (tmp_path / "adapter" / "prompt_embeds.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match="no prompt embedding can be read"):
        load_adapter(Generator.load(tiny_base), tmp_path / "adapter", "stage1")
    with pytest.raises(BundleError, match=r"attends to \(1, any length, 16\)"):
        generator.set_prompt(torch.randn(1, 5, 17))


@pytest.mark.parametrize(
    "change",
    [{"factor": 0}, {"factor": 10**9}, {"stage": 3}, {"timestep": -1}, {"vae_encoder_rank": -4}],
    ids=str,
)
def test_a_record_with_numbers_that_cannot_be_is_refused_when_it_is_read(
    change: dict[str, int], tiny_stage1: Path, tmp_path: Path
) -> None:
    """Before anything is loaded, let alone exported."""
    path = tmp_path / "tudsr.json"
    path.write_text(json.dumps(json.loads((tiny_stage1 / "tudsr.json").read_text()) | change))
    (name,) = change
    with pytest.raises(BundleError, match=f"not a record of an adapter: {name} is"):
        read_adapter_record(tmp_path)


@pytest.mark.parametrize("change", [{"peft_type": "FOO"}, {"target_modules": "(("}, {"r": "4"}, None])
def test_a_configuration_that_is_no_loras_is_refused(
    change: dict[str, object] | None, tiny_base: Path, tiny_stage1: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_stage1, tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text("{}" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BundleError):
        load_adapter(Generator.load(tiny_base), tmp_path / "a", "stage1")


@pytest.mark.parametrize("config", ["{}", "[]"])
def test_an_autoencoder_of_no_class_is_refused(config: str, tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base" / "vae" / "config.json").write_text(config)
    with pytest.raises(BundleError, match="cannot be read"):
        Generator.load(tmp_path / "base")
