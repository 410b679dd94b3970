"""Checkpoints are whole or do not count, whatever happens to their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tudsr_runtime.errors import TrainingError
from tudsr_train.run import checkpoint
from tudsr_train.run.checkpoint import POINTS, Checkpoint


def _checkpoint(step: int) -> Checkpoint:
    weight = torch.full((2,), float(step))
    optimizer = {
        "state": {0: {"step": torch.tensor(1.0), "exp_avg": weight / 2}},
        "param_groups": [{"lr": 0.1}],
    }
    return Checkpoint(
        step, 4 * step, {"generator": {"w": weight}}, {"generator": optimizer}, {"seed": 1}, {"base": "x"}
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    saved = _checkpoint(3)
    found = checkpoint.load(checkpoint.save(tmp_path, saved, keep=2))
    assert torch.equal(found.networks["generator"]["w"], saved.networks["generator"]["w"])
    state = found.optimizers["generator"]["state"][0]
    assert torch.equal(state["exp_avg"], saved.optimizers["generator"]["state"][0]["exp_avg"])
    assert replace(found, networks={}, optimizers={}) == replace(saved, networks={}, optimizers={})


def test_the_newest_stay_and_the_pointer_names_the_last(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, _checkpoint(step), keep=2)
    assert [path.name for path in checkpoint.folders(tmp_path)] == ["step-000002", "step-000003"]
    assert (tmp_path / "latest").read_text() == "step-000003\n"


@pytest.mark.parametrize("damage", ["byte", "missing", "uncommitted", "extra"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(damage: str, tmp_path: Path) -> None:
    for step in (1, 2):
        folder = checkpoint.save(tmp_path, _checkpoint(step), keep=2)
    weights = folder / "generator.safetensors"
    if damage == "byte":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    elif damage == "missing":
        weights.unlink()
    elif damage == "uncommitted":
        (folder / "COMMIT").unlink()
    else:
        (folder / "more.safetensors").write_bytes(b"")
    said: list[str] = []
    found = checkpoint.newest(tmp_path, said.append)
    assert found is not None
    assert found.step == 1
    assert len(said) == 1
    assert "step-000002" in said[0]
    with pytest.raises(TrainingError, match="step-000002"):
        checkpoint.load(folder)


def test_an_earlier_checkpoint_can_be_gone_back_to(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, _checkpoint(step), keep=9)
    # resumed from step 1, now at step 2 again: steps 3 and later are of an abandoned run
    checkpoint.save(tmp_path, _checkpoint(2), keep=1)
    found = checkpoint.newest(tmp_path, print)
    assert found is not None
    assert found.step == 2
    assert [path.name for path in checkpoint.folders(tmp_path)] == ["step-000002", "step-000003"]


def test_every_point_of_a_save_is_passed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[str] = []
    monkeypatch.setattr(checkpoint, "at_point", passed.append)
    checkpoint.save(tmp_path, _checkpoint(1), keep=2)
    assert tuple(passed) == POINTS
