"""Validation figures, the best step by one of them, and a run's curves."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.train.recipes import optimization, stage1_config
from tudsr_runtime.errors import TrainingError, UsageError
from tudsr_runtime.metrics.niqe import niqe
from tudsr_train.base import train_base
from tudsr_train.bases.nano import NanoBase
from tudsr_train.config import BaseConfig, Validation
from tudsr_train.data.sources import Data
from tudsr_train.run import checkpoint
from tudsr_train.run.best import Best
from tudsr_train.run.plot import panels, plot, read_curves
from tudsr_train.run.validation import Grid
from tudsr_train.stage1 import train_stage1


def checkpoint_at(run: Path, step: int) -> Path:
    networks = {"generator": {"w": torch.full((2,), float(step))}}
    return checkpoint.save(run, checkpoint.Checkpoint(step, step, networks, {}), keep=1)


def test_the_best_step_stays_whole_when_later_ones_are_worse(tmp_path: Path) -> None:
    best = Best(tmp_path, "niqe")
    for step, value in enumerate((6.0, 5.0, 5.5, float("nan")), start=1):
        figures = {"PSNR stage 1": 20.0 + step, "NIQE stage 1": 9.0, "NIQE stage 2": value}
        saved = checkpoint_at(tmp_path, step)
        assert best.improved(figures) == (step <= 2)
        if best.improved(figures):
            best.keep(saved, step, figures)
    assert checkpoint.load(tmp_path / "best").step == 2
    assert json.loads((tmp_path / "best.json").read_text())["value"] == 5.0
    assert [path.name for path in checkpoint.folders(tmp_path)] == ["step-000004"]


def test_more_psnr_is_better_and_another_figure_begins_anew(tmp_path: Path) -> None:
    best = Best(tmp_path, "psnr")
    best.keep(checkpoint_at(tmp_path, 1), 1, {"PSNR stage 1": 20.0})
    assert best.improved({"PSNR stage 1": 21.0})
    assert not best.improved({"PSNR stage 1": 19.0})
    assert not best.improved({"NIQE stage 1": 1.0})
    assert Best(tmp_path, "dists").improved({"dists[hed] stage 1": 0.3})


def test_figures_are_those_of_tudsr_eval() -> None:
    x_H = torch.rand(1, 3, 96, 192) * 2 - 1
    grid = Grid(lambda: [(x_H[0], x_H[0])], lambda x: {"stage 1": x * 0.9}, torch.device("cpu"))  # type: ignore[arg-type, return-value]
    grid.distance = ("dists[toy]", lambda x, y: (x - y).abs().mean((1, 2, 3)))
    _, figures = grid(0)
    levels = ((x_H * 0.9 + 1) * 127.5).round().to(torch.uint8)[0].movedim(0, -1).numpy()
    assert figures["NIQE stage 1"] == pytest.approx(niqe(levels))
    assert figures["dists[toy] stage 1"] == pytest.approx(float((x_H * 0.05).abs().mean()), rel=1e-4)
    assert list(figures) == ["PSNR stage 1", "NIQE stage 1", "dists[toy] stage 1"]


@pytest.fixture
def trained(pool: Data, tiny_model: NanoBase, tmp_path: Path) -> Path:
    """A run that validated on camera pairs and kept its best step."""
    base = tmp_path / "base"
    shown = Validation(every=1, images=1, best="psnr")
    config = BaseConfig(
        model=tiny_model, data=pool, R=32, validation=shown, optimization=optimization(steps=1)
    )
    train_base(config, base, "never")
    (tmp_path / "HR").mkdir()
    (tmp_path / "LR").mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        high = Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8))
        high.save(tmp_path / "HR" / f"{number}.png")
        high.reduce(2).save(tmp_path / "LR" / f"{number}.png")
    camera = replace(shown, path=(str(tmp_path / "HR"),), input=str(tmp_path / "LR"))
    train_stage1(replace(stage1_config(base, pool, steps=3), validation=camera), tmp_path / "stage1", "never")
    return tmp_path / "stage1.run"


def test_a_run_keeps_its_best_step_and_is_drawn(trained: Path, tmp_path: Path) -> None:
    curves = read_curves(trained)
    psnr = curves["validation/PSNR stage 1"]
    assert [step for step, _ in psnr] == [1, 2, 3]
    record = json.loads((trained / "best.json").read_text())
    assert record["value"] == max(value for _, value in psnr)
    assert checkpoint.load(trained / "best").step == record["step"]
    assert checkpoint.load(tmp_path / "base.run" / "best").step == 1

    titles = list(panels(curves))
    assert titles[:3] == ["losses", "logits", "validation: PSNR"]
    assert "gradient norm" in titles
    page = plot(trained, None)
    assert page == trained / "plot.html"
    assert page.read_text().startswith("<!doctype html>")
    drawing = ET.parse(plot(trained, tmp_path / "run.svg")).getroot()
    lines = drawing.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == len(curves)
    assert all(len(line.attrib["points"].split()) == 3 for line in lines if line.attrib["points"])


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no log\.jsonl"):
        plot(tmp_path, None)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "L_G": 0.5}\n{"step": 2, "L_G": 0.')
    assert read_curves(tmp_path) == {"L_G": [(1, 0.5)]}
    with pytest.raises(UsageError, match=r"\.svg"):
        plot(tmp_path, tmp_path / "run.png")


@pytest.mark.parametrize("changes", [{"best": "fid"}, {"input": "beside"}])
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, str]) -> None:
    with pytest.raises(TrainingError, match="validation"):
        Validation(**changes)  # type: ignore[arg-type]
