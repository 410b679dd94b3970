"""Hostile adapters and bases: refused with exit code 5, in one line, before anything is computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.export.conftest import TILE, Source
from tests.export.hostile import ADAPTERS, BASES, CONFIG, NEVER_MATCHED, WEIGHTS, setting, tensors
from tudsr_export import command
from tudsr_export.options import ExportOptions
from tudsr_runtime.errors import BundleError
from tudsr_train.adapters import load_adapter
from tudsr_train.generator import Generator


def assert_refused(base: Path, stage1: Path, stage2: Path | None, output: Path, capsys) -> None:
    with pytest.raises(BundleError) as caught:
        command.run(ExportOptions(output, base, stage1, stage2), tile=TILE)
    assert caught.value.exit_code == 5
    assert len(str(caught.value)) < 500
    shown = capsys.readouterr()
    assert "stage1: " not in shown.err, "the export had begun"
    assert "merged_vs_lora" not in shown.err
    assert not list(output.parent.glob("out*"))
    assert not list(output.parent.glob(".tudsr-*"))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_hostile_adapter_is_refused(name, nano, tmp_path, capsys):
    adapter = shutil.copytree(nano.stage1, tmp_path / "adapter")
    ADAPTERS[name](adapter)
    assert_refused(nano.base, adapter, None, tmp_path / "out", capsys)


@pytest.mark.parametrize("name", BASES)
def test_a_hostile_base_is_refused(name, nano, tmp_path, capsys):
    base = shutil.copytree(nano.base, tmp_path / "base")
    BASES[name](base)
    assert_refused(base, nano.stage1, None, tmp_path / "out", capsys)


def test_the_adapter_of_stage_2_is_looked_at_before_stage_1_is_exported(nano, tmp_path, capsys):
    """Which takes minutes at full size."""
    adapter = shutil.copytree(nano.stage2, tmp_path / "adapter")
    tensors(WEIGHTS, lambda found: dict(sorted(found.items())[1:]))(adapter)
    assert_refused(nano.base, nano.stage1, adapter, tmp_path / "out", capsys)


def test_modules_named_by_an_expression_are_those_that_have_weights(nano: Source, tmp_path):
    """Also where it would never be matched; PEFT and diffusers write such expressions."""
    import torch

    expected, base = Generator.load(nano.base), Generator.load(nano.base)
    load_adapter(expected, nano.stage1, "x")
    adapter = shutil.copytree(nano.stage1, tmp_path / "adapter")
    setting(CONFIG, target_modules=NEVER_MATCHED, exclude_modules=NEVER_MATCHED)(adapter)
    load_adapter(base, adapter, "x")
    z = torch.randn(1, base.unet.config.in_channels, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(base.predict(z, 100), expected.predict(z, 100))
