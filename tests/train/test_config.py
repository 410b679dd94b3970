"""Configurations: typed, overridable, and helpful about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tudsr_runtime.errors import TrainingError
from tudsr_train.config import BaseConfig, Stage1Config, Stage2Config, load_config


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


def test_file_and_overrides_are_merged_into_typed_values(tmp_path: Path) -> None:
    path = _file(tmp_path, "base: b\nM: [2, 4]\noptimization: {lr: 1e-3, steps: 7}\n")
    config = load_config(Stage1Config, path, ["optimization.steps=9", "data.seed=3", "lora.rank=8"])
    assert config.M == (2, 4)
    assert config.optimization.lr == 1e-3
    assert (config.optimization.steps, config.data.seed, config.lora.rank) == (9, 3, 8)


def test_the_defaults_of_both_stages_are_the_papers() -> None:
    stage1, stage2 = Stage1Config(), Stage2Config()
    assert (stage1.t1, stage1.optimization.steps, stage1.R, stage1.lora.rank) == (200, 5100, 512, 32)
    assert (stage2.t2, stage2.optimization.steps, stage2.N, stage2.lora.rank) == (50, 3500, 2, 32)
    for config in (stage1, stage2):
        o = config.optimization
        assert (o.lr, o.batch_size, o.accumulation, o.schedule) == (5e-5, 1, 4, "constant")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimisation: {}", "did you mean 'optimization'"),
        ("optimization: {learning_rate: 1}", "unknown key 'learning_rate'"),
        ("R: big", "R must be of type int, not 'big'"),
        ("seed: true", "seed must be of type int"),
        ("M: 4", "M must be a list"),
        ("degradation: {blur_sigma: [1, 2, 3]}", "must have 2 values, not 3"),
        ("- a\n- b", "expected keys and values"),
        ("a: [", "not a readable YAML file"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        load_config(BaseConfig, _file(tmp_path, text), [])


def test_a_missing_file_and_a_bare_override_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no such config file"):
        load_config(BaseConfig, tmp_path / "none.yaml", [])
    with pytest.raises(TrainingError, match="expected key=value"):
        load_config(BaseConfig, _file(tmp_path, ""), ["steps"])


@pytest.mark.parametrize(
    ("kind", "name"), [(BaseConfig, "base"), (Stage1Config, "stage1"), (Stage2Config, "stage2")]
)
def test_the_shipped_configurations_are_valid(kind: type, name: str) -> None:
    shipped = Path(__file__).parents[2] / "configs" / "nano" / f"{name}.yaml"
    assert load_config(kind, shipped, []).out.startswith("models/nano/")
