"""LoRA adapters: identity at birth, PEFT's own format on disk, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tudsr_runtime.errors import BundleError
from tudsr_train.adapters import (
    AdapterRecord,
    adapter_parameters,
    add_adapter,
    load_adapter,
    prompt_sha256,
    save_adapter,
)
from tudsr_train.config import Lora
from tudsr_train.generator import Generator

TARGETS = Lora().target_modules


def _random_adapter(generator: Generator, folder: Path, name: str = "stage1", rank: int = 4) -> AdapterRecord:
    add_adapter(generator, name, rank, TARGETS)
    torch.manual_seed(1)
    for parameter in adapter_parameters(generator, name).values():
        torch.nn.init.normal_(parameter, std=0.05)
    record = AdapterRecord(1, 200, 4, generator.base_sha256, prompt_sha256(generator.prompt_embeds))
    folder.mkdir()
    save_adapter(generator, name, folder, record)
    return record


def test_a_fresh_adapter_changes_nothing_and_is_all_that_trains(generator: Generator) -> None:
    z_L = torch.randn(1, 48, 16, 16)
    with torch.no_grad():
        before = generator.predict(z_L, 200)
        add_adapter(generator, "stage1", 32, TARGETS)
        assert torch.equal(generator.predict(z_L, 200), before)
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
