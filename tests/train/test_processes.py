"""What only real processes show: SIGKILL in the middle of a save, and two processes that train together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tudsr_train.data.sources import Data
from tudsr_train.run.checkpoint import POINTS

if not hasattr(os, "fork"):
    pytest.skip("needs a system that forks", allow_module_level=True)


@pytest.fixture(scope="module")
def rehearsal(tiny_base: Path, pool: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(folder of the runs, what became of them)."""
    pool.synthetic_pool()
    folder = tmp_path_factory.mktemp("rehearsal")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("rehearsal.py"), folder, tiny_base, pool.cache],
        env=os.environ | {"TUDSR_TEST_PORT": str(port), "OMP_NUM_THREADS": "1"},
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
