"""This evaluator against figures that someone else published, of pictures that are there to be measured.

DIR holds METHOD_metrics.csv (one row a picture: `image`, then scores by their names in pyiqa), the pictures
in DIR/METHOD and their references in DIR/HR. OSEDiff's authors published such a log of RealSR's 100 pairs.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tudsr_eval.matching import Case
from tudsr_eval.run import score_all
from tudsr_eval.scores import Tiling
from tudsr_eval.table import table
from tudsr_runtime.errors import BatchError, InputError

SUFFIX = "_metrics.csv"


@dataclass(frozen=True)
class Column:
    """A published score: our name for it, and how far ours may be from it."""

    name: str
    tolerance: float


COLUMNS = {"psnr": Column("psnr_y", 0.001), "ssim": Column("ssim_y", 0.001), "niqe": Column("niqe", 0.03)}
"""Columns that are compared, by pyiqa's name; the others of a file need networks."""


def self_check(folder: Path, jobs: int | None = None, note: Callable[[str], object] = print) -> str:
    """Measure, compare, and say so in a Markdown table.

    Raises:
        InputError: `folder` is not laid out as above, or a picture cannot be read.
        BatchError: a score is further from the published one than it may be.
    """
    path, rows = _published(folder)
    method = path.name.removesuffix(SUFFIX)
    names_of = [row["image"] for row in rows]
    cases = [Case(method, name, folder / method / name, folder / "HR" / name) for name in names_of]
    columns = {key: column for key, column in COLUMNS.items() if key in rows[0]}
    names = [column.name for column in columns.values()]
    errors: dict[str, list[float]] = {key: [] for key in columns}
    far = []
    for one, row in zip(score_all(cases, names, Tiling(), jobs=jobs), rows, strict=True):
        if one.error:
            raise one.error
        for key, column in columns.items():
            errors[key].append(abs(one.scores[column.name] - float(row[key])))
            if not errors[key][-1] <= column.tolerance:
                far.append(f"{one.case.name}: {key} {one.scores[column.name]:.4f}, published {row[key]}")
    for line in far:
        note(line)
    rest = sorted(set(rows[0]) - {"image", *columns})
    report = _report(method, columns, errors, rest)
    if far:
        raise BatchError(f"{len(far)} scores are further from the published ones than they may be: {far[0]}")
    return report


def _published(folder: Path) -> tuple[Path, list[dict[str, str]]]:
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if len(found) != 1:
        raise InputError(
            f"{folder}: {len(found)} files *{SUFFIX}, where one is needed",
            hint="METHOD_metrics.csv with the columns image, psnr, ssim, niqe; folders METHOD and HR",
        )
    with found[0].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "image" not in rows[0] or not set(rows[0]) & {*COLUMNS}:
        raise InputError(f"{found[0]}: needs rows with the columns image and {', '.join(COLUMNS)}")
    return found[0], rows


def _report(method: str, columns: dict[str, Column], errors: dict[str, list[float]], rest: list[str]) -> str:
    lines = [
        [key, str(len(errors[key])), f"{max(errors[key]):.5f}", f"{column.tolerance:g}"]
        for key, column in columns.items()
    ]
    head = [f"published score of {method}", "pictures", "largest difference", "allowed"]
    left = f"\n\nNot compared, for they need networks: {', '.join(rest)}." if rest else ""
    return table(head, lines) + left
