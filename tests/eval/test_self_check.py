"""The evaluator checks itself against a published log."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import app
from tudsr_eval.self_check import self_check
from tudsr_runtime.errors import BatchError, InputError
from tudsr_runtime.metrics.fidelity import psnr_y, ssim_y
from tudsr_runtime.metrics.niqe import niqe

REALSR = Path(__file__).parents[3] / "shared" / "data" / "realsr"


@pytest.fixture
def published(pictures: Path) -> Path:
    """A peer's log of its pictures, right to the last digit."""
    (pictures / "bicubic").rename(pictures / "peer")
    with (pictures / "peer_metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "psnr", "ssim", "musiq", "niqe"])
        for path in sorted((pictures / "peer").iterdir()):
            path = path.rename(path.with_name(path.name.replace("_x4", "")))
            x, y = (np.asarray(Image.open(p)) for p in (path, pictures / "HR" / path.name))
            writer.writerow([path.name, psnr_y(x, y), ssim_y(x, y), 70, niqe(x)])
    return pictures


def test_what_was_published_is_found_again(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["eval", "--self-check", str(published)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "| niqe | 3 | 0.00000 | 0.03 |" in printed
    assert "need networks: musiq" in printed


def test_another_picture_is_noticed(published: Path) -> None:
    picture = published / "peer" / "coffee.png"
    Image.open(picture).point(lambda level: level * 0.99).save(picture)
    said: list[str] = []
    with pytest.raises(BatchError, match=r"coffee\.png: psnr"):
        self_check(published, note=said.append)
    assert all(line.startswith("coffee.png") for line in said)


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 files"):
        self_check(tmp_path)
    (tmp_path / "peer_metrics.csv").write_text("image,musiq\na.png,70\n")
    with pytest.raises(InputError, match="psnr, ssim, niqe"):
        self_check(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not REALSR.is_dir(), reason=f"{REALSR}: published scores and their pictures")
def test_osediffs_log_of_realsr() -> None:
    assert "| psnr | 100 |" in self_check(REALSR)
