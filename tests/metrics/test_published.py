"""The metrics against scores that someone else computed: OSEDiff's authors, of their pictures of RealSR."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tudsr_runtime.metrics.fidelity import psnr_y, ssim_y
from tudsr_runtime.metrics.niqe import niqe

REALSR = Path(__file__).parents[3] / "shared" / "data" / "realsr"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not REALSR.is_dir(), reason=f"{REALSR}: published scores and their pictures"),
]


def test_published_scores_are_found_again() -> None:
    """Of every tenth picture; of all of them in tests/eval/test_self_check.py."""
    with (REALSR / "osediff_metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100
    for row in rows[::10]:
        picture, reference = (
            np.asarray(Image.open(REALSR / folder / row["image"]).convert("RGB"))
            for folder in ("osediff", "HR")
        )
        assert psnr_y(picture, reference) == pytest.approx(float(row["psnr"]), abs=0.001), row["image"]
        assert ssim_y(picture, reference) == pytest.approx(float(row["ssim"]), abs=0.001), row["image"]
        assert niqe(picture) == pytest.approx(float(row["niqe"]), abs=0.03), row["image"]
