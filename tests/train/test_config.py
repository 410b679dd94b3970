"""Configurations: typed, overridable, and helpful about mistakes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from tests import tracked
from tudsr_runtime.errors import TrainingError
from tudsr_train.config import (
    BaseConfig,
    DecoderConfig,
    LightDecoderConfig,
    Lora,
    Optimization,
    PairsConfig,
    Stage1Config,
    Stage2Config,
    Validation,
)
from tudsr_train.config_file import docstrings, load_config, to_yaml


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
        ("optimization: {steps: 0}", "steps must be at least 1, not 0"),
        ("optimization: {schedule: sawtooth}", "schedule 'sawtooth' is not known; constant, linear"),
        ("loss: {mae: -1}", "loss: mae must be at least 0, not -1"),
        ("optimisation: {}", "did you mean 'optimization'"),
        ("optimization: {learning_rate: 1}", "unknown key 'optimization.learning_rate'"),
        ("R: big", "R must be an integer, not 'big'"),
        ("seed: true", "seed must be an integer"),
        ("M: 4", "M must be a list"),
        ("degradation: {blur_sigma: [1, 2, 3]}", "must have 2 values, not 3"),
        ("- a\n- b", "the configuration must be an object"),
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


CONFIGS = tracked.ROOT / "configs"
KINDS: dict[str, type] = {
    "base": BaseConfig,
    "base-soft": BaseConfig,
    "base-clean": BaseConfig,
    "base-texture": BaseConfig,
    "stage1": Stage1Config,
    "stage2": Stage2Config,
    "stage2-first": Stage2Config,
    "decoder": DecoderConfig,
    "pairs": PairsConfig,
    "pairs-x8": PairsConfig,
}


@pytest.mark.parametrize(
    "path",
    [path for path in tracked.files("configs") if path.suffix == ".yaml"],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_a_shipped_configuration_is_valid_and_comes_back_from_its_resolved_form(
    path: Path, tmp_path: Path
) -> None:
    config = load_config(KINDS.get(path.stem, Stage1Config), path, [])
    assert config.out
    resolved = _file(tmp_path, to_yaml(config))
    assert load_config(KINDS.get(path.stem, Stage1Config), resolved, []) == config


def test_tudsr_s_is_trained_as_the_paper_says() -> None:
    stage1 = load_config(Stage1Config, CONFIGS / "tudsr-s" / "stage1.yaml", [])
    stage2 = load_config(Stage2Config, CONFIGS / "tudsr-s" / "stage2.yaml", [])
    assert (stage1.t1, stage1.optimization.steps) == (200, 5100)
    assert (stage2.t2, stage2.optimization.steps, stage2.N) == (50, 3500, 2)
    for config in (stage1, stage2):
        o, weights = config.optimization, config.loss
        assert (config.R, config.lora.rank, config.discriminator.kind) == (512, 32, "dinov3")
        assert (o.optimizer, o.lr, o.batch_size, o.accumulation) == ("adamw", 5e-5, 1, 4)
        assert (weights.ea_dists, weights.gan, weights.mae) == (5, 0.5, 0.5)
        assert (weights.mse, weights.edges) == (0, 0)


@pytest.mark.parametrize(
    "kind",
    [
        Optimization,
        Lora,
        Validation,
        BaseConfig,
        Stage1Config,
        Stage2Config,
        DecoderConfig,
        LightDecoderConfig,
    ],
)
def test_every_default_says_where_it_comes_from(kind: type) -> None:
    told = docstrings(kind)
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING:
            continue  # a group of settings, which has its own
        assert field.name in told
        if field.default != "":
            assert re.search(r"Ours|Paper|paper|OMGSR|lineage", told[field.name]), field.name


@pytest.mark.parametrize(
    "override",
    [
        "a=[1", "out.x=1", "optimization.lr.x=1", "optimization.lr=nan", "optimization.lr=-1",
        "optimization.lr=.inf", "optimization.betas=[2, 3]", "optimization.eps=-1", "optimization.workers=-1",
        "optimization.threads=-1", "lora.rank=0", "R=0", "M=[]", "M=[0]", "M=[1000]", "t1=-1", "seed=-1",
        "validation.images=0",
    ],
)  # fmt: skip
def test_values_that_cannot_be_meant_are_refused_in_one_line(tmp_path: Path, override: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("out: here\noptimization: {lr: 1e-3}\n")
    with pytest.raises(TrainingError):
        load_config(Stage1Config, path, [override])


def test_values_cannot_be_set_in_a_file_that_is_a_list(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("- 1\n")
    with pytest.raises(TrainingError, match="the file is"):
        load_config(Stage1Config, path, ["optimization.lr=1"])
