"""The whole path through the installed command: train, export, verify, upscale."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers", reason="training and export need the [train] and [export] extras")

from safetensors.torch import load_file, save_file

import cli

TUDSR = Path(sys.executable).with_name("tudsr")
DATA = "data: {count: 4, size: 64, cache: pool}\nR: 32\n"
OPTIMIZATION = (
    "optimization: {steps: 4, batch_size: 1, accumulation: 1, workers: 0, precision: fp32, lr: 1e-3}\n"
)
BASE = """
model:
  margin: 8
  block_out_channels: [8, 16]
  num_attention_heads: 2
  cross_attention_dim: 8
  norm_num_groups: 4
"""


def tudsr(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # the same bytes twice are for one number of threads, which libraries change with the load
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [TUDSR, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def refused(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """`refused(*words, status=...)`: what the command says when it refuses that; in this process, which has
    loaded the libraries already."""

    def run(*words: str, status: int) -> str:
        monkeypatch.chdir(workplace)
        monkeypatch.setattr(sys, "argv", ["tudsr", *words])
        capfd.readouterr()
        assert cli.main() == status
        return capfd.readouterr().err

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, two adapters and the bundle that came of them."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "base.yaml").write_text(DATA + OPTIMIZATION + BASE)
    (folder / "stage.yaml").write_text(DATA + OPTIMIZATION + "base: base\nM: [2]\nlora: {rank: 4}\n")
    (folder / "stage2.yaml").write_text(
        DATA.replace("R: 32", "R: 16")
        + OPTIMIZATION
        + "base: base\nstage1: stage1\nM: [2]\nlora: {rank: 4}\n"
    )
    tudsr(folder, "train", "base", "--config", "base.yaml", "--out", "base")
    tudsr(folder, "train", "stage1", "--config", "stage.yaml", "--out", "stage1")
    tudsr(folder, "train", "stage2", "--config", "stage2.yaml", "--out", "stage2")
    adapters = ("--stage1", "stage1", "--stage2", "stage2")
    tudsr(folder, "export", "--base", "base", *adapters, "--merge-lora", "-o", "bundle")
    return folder


def test_the_bundle_is_sound_and_names_its_stages(workplace: Path) -> None:
    assert "as the manifest says" in tudsr(workplace, "bundle", "verify", "bundle").stdout
    manifest = json.loads((workplace / "bundle" / "bundle.json").read_text())
    stages = [(s["name"], s["timestep"]) for s in manifest["stages"]]
    assert stages == [("stage1", 200), ("stage2", 50)]


def test_a_photo_comes_out_eight_times_larger_and_still_itself(workplace: Path) -> None:
    photo = Path(__file__).parents[1] / "examples" / "coffee.png"
    out = tudsr(workplace, "upscale", str(photo), "--bundle", "bundle", "--scale", "8", "-o", "large.png")
    assert out.stdout.strip() == "large.png"
    with Image.open(workplace / "large.png") as large, Image.open(photo) as small:
        assert large.size == (small.width * 8, small.height * 8)
        reduced = np.asarray(large.resize(small.size, Image.Resampling.BOX), np.float32)
        original = np.asarray(small.convert("RGB"), np.float32)
    assert np.abs(reduced - original).mean() < 6


def test_a_second_export_has_the_same_hashes_and_does_not_overwrite(
    workplace: Path, refused: Callable[..., str]
) -> None:
    words = ("export", "--base", "base", "--stage1", "stage1", "--merge-lora")
    assert "exists" in refused(*words, "-o", "bundle", status=8)
    tudsr(workplace, *words, "-o", "again")
    first, again = (
        json.loads((workplace / name / "bundle.json").read_text())["components"]
        for name in ("bundle", "again")
    )
    # The decoder's too: a stage more changes no graph of the others.
    assert first.keys() - again.keys() == {"unet_stage2"}
    for name, component in again.items():
        files, expected = ([f["sha256"] for f in c["variants"][0]["files"]] for c in (component, first[name]))
        assert files == expected, name


def test_adapters_and_base_that_do_not_fit_are_refused(workplace: Path, refused: Callable[..., str]) -> None:
    shutil.copytree(workplace / "base", workplace / "other")
    weights = workplace / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: 1.5 * w for name, w in load_file(weights).items()}, weights, {"format": "pt"})
    said = refused("export", "--base", "other", "--stage1", "stage1", "-o", "none", status=5)
    assert "trained on base" in said
    assert not (workplace / "none").exists()


def test_a_mistake_in_a_configuration_is_one_line_and_exit_10(refused: Callable[..., str]) -> None:
    words = ("train", "stage1", "--config", "stage.yaml", "--set", "lora.rnk=3", "--out", "x")
    said = refused(*words, status=10)
    assert said.strip().splitlines()[-1].startswith("error: ")
    assert "did you mean 'rank'" in said
