"""`tudsr train`: what it prints instead of training, and how it says no."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.recipes import stage1_config, stage2_config
from tudsr_runtime.errors import BundleError, MemoryExhausted, OutputError, TrainingError, UsageError
from tudsr_train import stage1
from tudsr_train.command import run
from tudsr_train.config import Stage1Config
from tudsr_train.config_file import load_config, to_yaml
from tudsr_train.data.sources import Data
from tudsr_train.options import TrainOptions


def test_the_printed_configuration_is_whole_explained_and_readable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("R: 256\n")
    run("stage1", TrainOptions(path, ("optimization.lr=1e-3",), print_config=True))
    printed = capsys.readouterr().out
    assert "  # Learning rate of G. Paper 4.1.\n  lr: 0.001\n" in printed
    path.write_text(printed)
    config = load_config(Stage1Config, path, [])
    assert (config.R, config.optimization.lr, config.t1) == (256, 1e-3, 200)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_check_reports_data_weights_losses_and_memory_and_writes_nothing(
    stage: int,
    pool: Data,
    tiny_base: Path,
    tiny_stage1: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = (
        stage1_config(tiny_base, pool)
        if stage == 1
        else stage2_config(tiny_base, tiny_stage1, pool, accumulation=4)
    )
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(config))
    run(f"stage{stage}", TrainOptions(path, out=tmp_path / "out", check=True))
    report = capsys.readouterr().out
    side = 64 * stage
    assert f"data: x_L (1, 3, 64, 64), x_H (1, 3, {side}, {side})" in report
    for line in (
        "weights: generator",
        "weights: discriminator",
        "losses: generator",
        "losses: discriminator",
    ):
        assert line in report
    assert "GiB at most, on cpu" in report
    assert [file.name for file in tmp_path.iterdir()] == ["c.yaml"]


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("{}")
    with pytest.raises(UsageError, match="no stage 'stage3'"):
        run("stage3", TrainOptions(path))
    with pytest.raises(TrainingError, match="no result folder"):
        run("stage1", TrainOptions(path))


def test_a_full_gpu_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(stage1, "Stage1", train)
    path = tmp_path / "c.yaml"
    path.write_text("out: x")
    with pytest.raises(MemoryExhausted, match="Tried to allocate 2 GiB"):
        run("stage1", TrainOptions(path))


@pytest.mark.parametrize("out", ["home", "stage1", "file", ".", "..", "file/x"])
def test_a_result_never_replaces_what_is_no_earlier_one(
    out: str, pool: Data, tiny_base: Path, tiny_stage1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_stage1, tmp_path / "stage1")
    (tmp_path / "home").mkdir()
    for name in ("home/letters.txt", "file"):
        (tmp_path / name).write_text("precious")
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(stage2_config(tiny_base, tmp_path / "stage1", pool, steps=1)))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path / "home")
    target = Path(out) if out.startswith(".") else tmp_path / out
    with pytest.raises(OutputError):
        run("stage2", TrainOptions(path, out=target))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_result_without_its_run_is_replaced_only_where_that_is_asked_for(
    pool: Data, tiny_base: Path, tiny_stage1: Path, tmp_path: Path
) -> None:
    """Such as the adapters that lie in a copy of a repository: the run that made them is elsewhere."""
    out, path = tmp_path / "stage1", tmp_path / "c.yaml"
    shutil.copytree(tiny_stage1, out)
    path.write_text(to_yaml(stage1_config(tiny_base, pool, steps=1)))
    before = (out / "adapter_model.safetensors").read_bytes()
    for check in (True, False):
        with pytest.raises(OutputError, match=r"no run that made it") as caught:
            run("stage1", TrainOptions(path, out=out, check=check))
        assert caught.value.hint is not None
        assert "--overwrite" in caught.value.hint
    assert (out / "adapter_model.safetensors").read_bytes() == before
    run("stage1", TrainOptions(path, out=out, overwrite=True))
    assert (out / "adapter_model.safetensors").read_bytes() != before
    run("stage1", TrainOptions(path, ("optimization.steps=2",), out=out))


def test_a_base_never_replaces_what_is_no_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "letters.txt").write_text("precious")
    path = tmp_path / "c.yaml"
    path.write_text("R: 64\n")
    with pytest.raises(OutputError, match="no earlier result"):
        run("base", TrainOptions(path, out=tmp_path / "base"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("t1=1000", "timestep 1000 is outside the schedule"),
        ("R=68", "multiple of 8"),
        ("data.size=32", "no crop of 64 px"),
        ("data.count=0", "no pictures can be drawn"),
    ],
)
def test_settings_that_do_not_fit_base_or_data(
    override: str, message: str, pool: Data, tiny_base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(stage1_config(tiny_base, pool)))
    with pytest.raises(TrainingError, match=message):
        run("stage1", TrainOptions(path, (override,), out=tmp_path / "out", check=True))


@pytest.mark.parametrize("change", [{"timestep": "x"}, {"timestep": None}, {"stage": 2.5}, {"base": 1}])
def test_a_record_with_wrong_types(
    change: dict[str, Any], pool: Data, tiny_base: Path, tiny_stage1: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_stage1, tmp_path / "stage1")
    record = tmp_path / "stage1" / "tudsr.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(stage2_config(tiny_base, tmp_path / "stage1", pool)))
    with pytest.raises(BundleError, match="not a record"):
        run("stage2", TrainOptions(path, out=tmp_path / "out", check=True))
