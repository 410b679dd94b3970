"""`tudsr eval` from arguments to files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli import app
from tudsr_eval.command import wanted_metrics
from tudsr_eval.scores import ALWAYS, Subject, measure
from tudsr_runtime.errors import BatchError, InputError, UsageError
from tudsr_runtime.metrics.fidelity import psnr_y
from tudsr_runtime.metrics.niqe import niqe


def run(*words: str | Path) -> None:
    app(["eval", *map(str, words)], standalone_mode=False)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_everything_of_three_pictures_by_two_methods(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        pictures / "bicubic", pictures / "nearest",
        "--reference", pictures / "HR", "--input", pictures / "LR", "-o", pictures / "out",
    )  # fmt: skip
    printed = capsys.readouterr()
    assert printed.out.rstrip() == (pictures / "out" / "scores.md").read_text(encoding="utf-8").rstrip()
    records = lines((pictures / "out" / "scores.jsonl").read_text())
    assert [(r["method"], r["name"]) for r in records] == [
        (m, n) for m in ("bicubic", "nearest") for n in ("astronaut", "chelsea", "coffee")
    ]
    for record in records:
        assert set(record["scores"]) == {*ALWAYS} - {"seams"}
        assert record["size"] == [208, 208]
        assert record["scale"] == 4
        assert record["error"] is None
        picture, reference = (np.asarray(Image.open(record[key])) for key in ("prediction", "reference"))
        assert record["scores"]["psnr_y"] == psnr_y(picture, reference)
        assert record["scores"]["niqe"] == niqe(picture)
    assert "seams: one tile of 512 px holds all of it (astronaut_x4.png, chelsea_x4.png" in printed.err
    row = next(line for line in printed.out.splitlines() if line.startswith("| bicubic"))
    mean = np.mean([r["scores"]["psnr_y"] for r in records[:3]])
    assert f"| bicubic | 3 | {mean:.3f} |" in row
    worst = min(records[:3], key=lambda r: r["scores"]["psnr_y"])
    assert f"{worst['scores']['psnr_y']:.3f} {worst['name']}" in printed.out


def test_bicubic_gains_nothing_over_bicubic_and_more_than_nearest(pictures: Path) -> None:
    run(
        pictures / "bicubic", pictures / "nearest", "--reference", pictures / "HR", "--input",
        pictures / "LR", "--metrics", "gain,consistency", "-o", pictures / "out", "--page-pictures", "0",
    )  # fmt: skip
    records = lines((pictures / "out" / "scores.jsonl").read_text())
    bicubic, nearest = records[:3], records[3:]
    for ours, theirs in zip(bicubic, nearest, strict=True):
        assert abs(ours["scores"]["gain_bicubic"]) < 0.1  # Pillow's and MATLAB's differ at the edges
        assert theirs["scores"]["gain_bicubic"] < -0.2
        assert theirs["scores"]["consistency"] is None, "repeated pixels give the input back"


def test_a_picture_alone_has_what_needs_no_other(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(pictures / "HR" / "coffee.png", "--json")
    printed = capsys.readouterr()
    (record,) = lines(printed.out)
    assert set(record["scores"]) == {"niqe", "grid4", "grid8"}
    assert record["reference"] is None
    assert "without --reference there is no psnr_y" in printed.err
    assert "without --input there is no consistency" in printed.err


def test_one_bad_picture_does_not_stop_the_rest(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "bicubic" / "coffee_x4.png").write_bytes(b"no picture")
    Image.new("RGB", (60, 60)).save(pictures / "bicubic" / "chelsea_x4.png")
    with pytest.raises(BatchError, match="2 of 3"):
        run(pictures / "bicubic", "--reference", pictures / "HR", "-o", pictures / "out")
    printed = capsys.readouterr()
    assert "coffee_x4.png" in printed.err
    assert "chelsea_x4.png: the prediction has 60 x 60 pixels, its reference 208 x 208" in printed.err
    assert "| bicubic | 1 of 3 |" in printed.out
    failed = [r["name"] for r in lines((pictures / "out" / "scores.jsonl").read_text()) if r["error"]]
    assert failed == ["chelsea", "coffee"]


def test_equal_pictures_are_null_in_json_and_left_out_of_means(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(pictures / "HR", "--reference", pictures / "HR", "--metrics", "psnr,ssim", "-o", pictures / "out")
    for record in lines((pictures / "out" / "scores.jsonl").read_text()):
        assert record["scores"] == {"psnr_y": None, "ssim_y": pytest.approx(1)}
        assert record["notes"] == ["psnr_y: inf"]
    assert "| HR | 3 | - | 1.0000 |" in capsys.readouterr().out


def test_metrics_are_named_alone_and_in_groups() -> None:
    assert wanted_metrics("psnr, niqe,grid") == ["psnr_y", "niqe", "grid4", "grid8"]
    assert wanted_metrics("always") == list(ALWAYS)
    with pytest.raises(UsageError, match="fancy"):
        wanted_metrics("psnr,fancy")
    with pytest.raises(UsageError, match="no metric"):
        wanted_metrics(",")


def test_seams_are_looked_for_where_tiles_meet() -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (200, 200, 3), np.uint8)
    picture = source.repeat(4, 0).repeat(4, 1)
    scores, notes = measure(Subject(picture, None, source), ["seams"])
    assert not notes
    assert scores["seams"] == pytest.approx(1, abs=0.1)
    assert math.isfinite(scores["seams"])


def test_what_is_no_enlargement_is_an_error_of_that_picture() -> None:
    with pytest.raises(InputError, match="no enlargement"):
        measure(Subject(np.zeros((64, 32)), None, np.zeros((16, 16))), ["colour"])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16"])
def test_kinds_of_pictures(tmp_path: Path, mode: str) -> None:
    levels = np.random.default_rng(0).integers(0, 255, (96, 192, 4), np.uint8)
    rgba = Image.fromarray(levels)
    image = Image.fromarray(levels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else rgba.convert(mode)
    image.save(tmp_path / "a.png")
    run(tmp_path / "a.png", "--reference", tmp_path / "a.png", "-o", tmp_path / "out")
    (record,) = lines((tmp_path / "out" / "scores.jsonl").read_text())
    assert record["error"] is None
    assert record["scores"]["ssim_y"] == pytest.approx(1)
    assert "data:image/webp;base64," in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
