"""Hostile configurations: exit code 10 in one line, never a traceback, never a value taken in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.hostile import FILES, MODELS, SETTINGS, UNREAD, write_files
from tests.train.recipes import stage1_config
from tudsr_runtime.errors import DeviceError, TudsrError
from tudsr_train.command import run
from tudsr_train.config_file import to_yaml
from tudsr_train.data.sources import Data
from tudsr_train.options import TrainOptions


def assert_refused(config: Path, overrides: list[str], check: bool = False, stage: str = "stage1") -> None:
    out = config.parent / "out"
    options = TrainOptions(config, tuple(overrides), out=out, check=check, print_config=not check)
    with pytest.raises(TudsrError) as caught:
        run(stage, options)
    assert caught.value.exit_code == 10
    assert len(str(caught.value)) < 600
    assert not (config.parent / "out").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_configuration_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(FILES[name])
    assert_refused(tmp_path / "c.yaml", [])


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[:50])
def test_a_setting_that_nobody_means_is_refused(setting: str, tmp_path: Path, tiny_base: Path) -> None:
    # What names a device or a package is looked up when the run begins.
    late = setting.startswith("optimization.")
    (tmp_path / "c.yaml").write_text(f"base: {tiny_base}\nR: 64\nM: [2]\noptimization: {{device: cpu}}\n")
    assert_refused(tmp_path / "c.yaml", [setting], check=late)


@pytest.mark.parametrize("setting", MODELS)
def test_a_model_that_cannot_be_is_refused(setting: str, tmp_path: Path, pool: Data) -> None:
    small = (
        "{block_out_channels: [16, 32], num_attention_heads: 2, cross_attention_dim: 16, norm_num_groups: 8}"
    )
    data = f"{{count: {pool.count}, size: {pool.size}, seed: {pool.seed}, cache: {pool.cache}}}"
    (tmp_path / "c.yaml").write_text(
        f"R: 64\nt2_prob: 1\nmodel: {small}\ndata: {data}\noptimization: {{device: cpu, precision: fp32}}\n"
    )
    assert_refused(tmp_path / "c.yaml", [setting], check=True, stage="base")


@pytest.mark.parametrize("name", UNREAD)
def test_a_file_that_is_not_what_it_should_be_is_refused(
    name: str, tmp_path: Path, tiny_base: Path, pool: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    (tmp_path / "c.yaml").write_text(to_yaml(stage1_config(tiny_base, pool)))
    plain = ["loss={mae: 1}", "discriminator={kind: none}", "degradation=realesrgan"]
    assert_refused(tmp_path / "c.yaml", [*plain, *UNREAD[name]], check=True)


def test_a_device_that_is_not_there_has_a_code_of_its_own(
    tmp_path: Path, tiny_base: Path, pool: Data
) -> None:
    import torch

    if torch.backends.mps.is_available():
        pytest.skip("needs a machine without Apple's GPU")
    (tmp_path / "c.yaml").write_text(to_yaml(stage1_config(tiny_base, pool, device="mps")))
    with pytest.raises(DeviceError):
        run("stage1", TrainOptions(tmp_path / "c.yaml", out=tmp_path / "out", check=True))
