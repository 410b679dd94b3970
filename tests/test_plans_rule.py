"""The rule by which `benchmarks/plans.py` calls factors good."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def plans() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    try:
        return importlib.import_module("benchmarks.plans")
    finally:
        sys.path.pop(0)


CASES = [
    ("cheaper and within the tolerance", (9, 29.95, 29.95, 0.899), "4x- 2x2"),
    ("better, and costs less", (9, 31, 31, 0.91), "4x-"),
    ("too little PSNR", (9, 29.8, 29.8, 0.9), "2x2"),
    ("too little SSIM", (9, 30, 30, 0.896), "2x2"),
    ("better in the mean, but not on degraded pictures", (9, 30.3, 29.8, 0.9), "2x2"),
    ("much better in the mean, worse on degraded pictures: neither is", (9, 31, 29.8, 0.9), ""),
    ("better, but costs more", (11, 40, 40, 0.99), "2x2"),
    ("the same cost, and better", (10, 30.05, 30.05, 0.9), "4x- 2x2"),
]


@pytest.mark.parametrize(
    ("candidate", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_which_factors_are_good(
    plans: ModuleType, candidate: tuple[int, float, float, float], expected: str
) -> None:
    def measured(factors: str, cost: int, clean: float, degraded: float, ssim: float) -> Any:
        figures = {
            kind: {"psnr_db": psnr, "ssim": ssim, "texture": 0.5}
            for kind, psnr in (("clean", clean), ("degraded", degraded), ("both", (clean + degraded) / 2))
        }
        return plans.Measured(factors, factors == "2x2", cost, figures)

    found = [measured("2x2", 10, 30, 30, 0.9), measured("4x-", *candidate)]
    for order in (found, found[::-1]):
        good = plans.choose(order)
        assert " ".join(one.factors for one in good) == expected
    assert [entry["factors"] for entry in plans.entries(2, good)] == expected.split()


@pytest.mark.parametrize(
    ("cost", "dists", "expected"),
    [(9, 0.0995, "4x- 2x2"), (9, 0.101, "4x- 2x2"), (9, 0.103, "2x2"), (9, 0.05, "4x-"), (11, 0.05, "2x2")],
)
def test_where_looks_are_judged_fidelity_plays_no_part(
    plans: ModuleType, cost: int, dists: float, expected: str
) -> None:
    def measured(factors: str, cost: int, dists: float, psnr: float) -> Any:
        figures = {"psnr_db": psnr, "ssim": 0.9, "texture": 0.5, "dists": dists}
        return plans.Measured(
            factors, factors == "2x2", cost, dict.fromkeys(("clean", "degraded", "both"), figures)
        )

    found = [measured("2x2", 10, 0.1, 30.0), measured("4x-", cost, dists, 20.0)]
    assert " ".join(one.factors for one in plans.choose(found)) == expected
