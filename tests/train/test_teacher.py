"""Pairs that a teacher made: they follow from the configuration, and a run goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runtime.conftest import write_network_bundle
from tudsr_runtime import Upscaler
from tudsr_runtime.errors import OutputError, TrainingError
from tudsr_train.command import pairs
from tudsr_train.config import PairsConfig
from tudsr_train.data.pairs import Softness, Task
from tudsr_train.data.recipes import Clean
from tudsr_train.data.sources import Data, training_pairs
from tudsr_train.options import PairsOptions
from tudsr_train.teacher import make_pairs


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network_bundle(tmp_path_factory.mktemp("teacher") / "network")


@pytest.fixture
def config(teacher: Path, pool: Data) -> PairsConfig:
    return PairsConfig(str(teacher), scale=4, side=96, count=3, data=pool, degradation=Clean())


def _quiet(_: str) -> None:
    """Nobody watches."""


def test_the_larger_picture_is_what_the_teacher_makes_of_the_smaller(
    config: PairsConfig, teacher: Path, tmp_path: Path
) -> None:
    make_pairs(config, tmp_path / "p", _quiet)
    with Upscaler(teacher, color="none", sanity=False) as upscaler:
        for number in range(3):
            low, high = (
                np.asarray(Image.open(tmp_path / "p" / side / f"{number:06}.png")) for side in ("LR", "HR")
            )
            assert low.shape == (24, 24, 3)
            assert high.shape == (96, 96, 3)
            expected = upscaler.upscale(low, scale=4).astype(int)
            assert np.abs(high.astype(int) - expected).max() <= 1


def test_a_stopped_run_goes_on_and_trained_on_the_pairs_are_read(config: PairsConfig, tmp_path: Path) -> None:
    out = make_pairs(config, tmp_path / "p", _quiet)
    before = {file.name: file.read_bytes() for file in (out / "LR").iterdir()}
    (out / "HR" / "000001.png").unlink()
    kept = (out / "HR" / "000002.png").stat().st_mtime_ns
    said: list[str] = []
    make_pairs(config, out, said.append)
    assert {file.name: file.read_bytes() for file in (out / "LR").iterdir()} == before
    assert any("2 of them there already" in line for line in said)
    assert (out / "HR" / "000002.png").stat().st_mtime_ns == kept
    data = Data(source="paired", path=(str(out / "HR"),), lq_path=str(out / "LR"))
    read = training_pairs(data, Task(64, (4,), 16), Softness(), Clean(), 0, 4, tmp_path, _quiet)
    assert [tuple(side.shape) for side in read[0]] == [(3, 16, 16), (3, 64, 64)]


def test_pairs_of_other_settings_are_not_mixed_in(config: PairsConfig, tmp_path: Path) -> None:
    out = make_pairs(config, tmp_path / "p", _quiet)
    record = json.loads((out / "pairs.json").read_text())
    assert record["teacher"]["licence"]
    assert record["settings"]["scale"] == 4
    with pytest.raises(OutputError, match="pairs of another teacher or other settings"):
        make_pairs(PairsConfig(**{**vars(config), "seed": 1}), out, _quiet)
    (out / "pairs.json").write_text("{")
    with pytest.raises(OutputError, match="cannot be read"):
        make_pairs(config, out, _quiet)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"teacher": ""}, "no bundle"),
        ({"side": 130}, "scale 4"),
        ({"count": 0}, "count"),
        ({"side": 8}, "crop"),
    ],
)
def test_impossible_pairs_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        PairsConfig(**{"teacher": "nano", **settings})


def test_the_command_makes_them(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        f"teacher: {teacher}\nout: {tmp_path / 'p'}\nside: 96\ncount: 2\ndegradation: {{preset: nano}}\n"
        f"data: {{count: 2, size: 128, cache: {tmp_path / 'pool'}}}\n"
    )
    pairs(PairsOptions(path, print_config=True))
    assert "# The bundle that restores the crops" in capsys.readouterr().out
    pairs(PairsOptions(path))
    assert capsys.readouterr().out == f"{tmp_path / 'p'}\n"
    assert len(list((tmp_path / "p" / "HR").glob("*.png"))) == 2
