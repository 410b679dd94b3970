"""What only real processes show: SIGKILL in the middle of a save, and two processes that train together."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.tracked import ROOT
from tests.train.recipes import stage1_config
from tests.train.run.ports import free_port
from tudsr_train.config_file import to_yaml
from tudsr_train.data.sources import Data
from tudsr_train.run.checkpoint import POINTS

if not hasattr(os, "fork"):
    pytest.skip("needs a system that forks", allow_module_level=True)


@pytest.fixture(scope="module")
def rehearsal(tiny_base: Path, pool: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(folder of the runs, what became of them)."""
    pool.synthetic_pool()
    folder = tmp_path_factory.mktemp("rehearsal")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("rehearsal.py"), folder, tiny_base, pool.cache],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("point", POINTS)
def test_a_sigkill_in_a_save_loses_one_interval_at_most_and_changes_nothing(
    point: str, rehearsal: tuple[Path, Any]
) -> None:
    folder, found = rehearsal
    assert found[point]["status"] == -9
    # killed in the save of step 2, with a checkpoint at every step
    assert found[point]["resumed_at"] == (2 if point in ("pointed", "retired") else 1)
    assert found[point]["second"] == 0
    for file in ("generator.safetensors", "discriminator.safetensors"):
        whole, resumed = (folder / f"{run}.run" / "step-000003" / file for run in ("whole", point))
        assert resumed.read_bytes() == whole.read_bytes()
    assert not list((folder / f"{point}.run").glob(".tudsr-*"))


def test_two_processes_equal_one_with_twice_the_accumulation(rehearsal: tuple[Path, Any]) -> None:
    folder, found = rehearsal
    assert found["two"] == [0, 0]
    assert found["one"] == 0
    for network in ("generator", "discriminator"):
        two, one = (
            load_file(folder / f"{run}.run" / "step-000002" / f"{network}.safetensors")
            for run in ("two", "one")
        )
        assert two.keys() == one.keys()
        assert max((two[key] - one[key]).abs().max().item() for key in one) < 1e-6
    log = [(folder / f"{run}.run" / "log.jsonl").read_text().splitlines() for run in ("two", "one")]
    losses = [[json.loads(line).get("L_D") for line in lines] for lines in log]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_run_is_resumed_on_machines_that_share_no_disk(rehearsal: tuple[Path, Any]) -> None:
    """The second one has no checkpoint; it gets the first one's, and both go on together."""
    folder, found = rehearsal
    assert found["machines"]["resumed"] == [0, 0]
    runs = [folder / "machines" / str(rank) / "out.run" for rank in range(2)]
    assert (runs[0] / "step-000003").is_dir()
    assert not list(runs[1].glob("step-*"))
    log = [json.loads(line) for line in (runs[0] / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "L_G" in line] == [1, 2, 3]
    state = json.loads((runs[0] / "step-000003" / "state.json").read_text())
    assert state["next_batch"] == 4, "the third step took a picture of each process"


def test_processes_that_do_not_agree_refuse_to_train(rehearsal: tuple[Path, Any]) -> None:
    """And do not wait for each other for ever."""
    folder, found = rehearsal
    assert found["machines"]["unlike"] == [1, 1]
    assert not list((folder / "machines" / "unlike").glob("*.run/step-*"))


LAUNCHERS = {
    "torchrun": (["torch.distributed.run", "--nproc-per-node", "2", "--master-port"], "2 processes"),
    # which starts several on one machine for GPUs only
    "accelerate": (["accelerate.commands.launch", "--cpu", "--main_process_port"], "1 process"),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_documented_launchers_train(launcher: str, tiny_base: Path, pool: Data, tmp_path: Path) -> None:
    pytest.importorskip("tudsr", reason="needs tudsr installed: pip install -e .")
    (tmp_path / "c.yaml").write_text(to_yaml(stage1_config(tiny_base, pool, steps=2)))
    words, said = LAUNCHERS[launcher]
    command = [sys.executable, "-m", *words, str(free_port()), "-m", "tudsr"]
    done = subprocess.run(
        [*command, "train", "stage1", "--config", tmp_path / "c.yaml", "--out", tmp_path / "out"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(f"training on cpu.*, as asked for; {said},", done.stderr)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_the_documents_launch_the_module_that_works_in_every_install() -> None:
    for path in (ROOT / "docs" / "training.md", ROOT / "configs" / "tudsr-s" / "stage1.yaml"):
        lines = [line for line in path.read_text().splitlines() if "-m tudsr" in line]
        assert lines
        assert all(re.search(r"(accelerate launch|torchrun) .*-m tudsr train ", line) for line in lines)
