"""The notebooks of examples/: their cells, run in order in a process of their own, without a kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tracked
from tests.tracked import ROOT


def code(notebook: Path) -> list[str]:
    """The source of its code cells; the file is checked against the format's schema."""
    nbformat = pytest.importorskip("nbformat", reason="reading notebooks needs nbformat, of the extra [docs]")
    read = nbformat.read(notebook, as_version=4)
    nbformat.validate(read)
    return [cell.source for cell in read.cells if cell.cell_type == "code"]


def run(cells: list[str], folder: Path, check: str) -> subprocess.CompletedProcess[str]:
    """Run cells and then `check`, which sees their names, with `folder` as the working folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", "\n\n".join([*cells, check])],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_these_are_the_notebooks_and_they_hold_no_output() -> None:
    notebooks = [path for path in tracked.files("examples") if path.suffix == ".ipynb"]
    assert {path.stem for path in notebooks} == {"train_a_tiny_pair", "upscale_and_compare"}
    for path in notebooks:
        assert '"outputs": []' in path.read_text(encoding="utf-8")
        assert '"output_type"' not in path.read_text(encoding="utf-8")


def test_a_photo_is_compared_with_its_enlargements(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="upscaling needs the [cpu] extra")
    (tmp_path / "coffee.png").write_bytes((ROOT / "examples" / "coffee.png").read_bytes())
    cells = code(ROOT / "examples" / "upscale_and_compare.ipynb")
    check = "assert restored.size == original.size; assert set(figures) == {'bicubic', 'nano'}"
    check += "; assert beside.size == (288, 96)"
    done = run(cells, tmp_path, check)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" dB, SSIM-Y ") == 2


@pytest.mark.thorough
@pytest.mark.slow
def test_a_pair_is_trained_and_enlarges(tmp_path: Path) -> None:
    for needed in ("diffusers", "onnx", "onnxruntime"):
        pytest.importorskip(needed, reason="training and export need the [train] and [export] extras")
    (tmp_path / "coffee.png").write_bytes((ROOT / "examples" / "coffee.png").read_bytes())
    cells = code(ROOT / "examples" / "train_a_tiny_pair.ipynb")
    done = run(
        cells, tmp_path, "assert larger.size == (384, 256); assert list(figures) == [1, 2, 3, 4, 5, 6]"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "tiny/bundle"
    assert {path.name for path in tmp_path.iterdir()} == {"coffee.png", "tiny"}


def test_a_cell_that_fails_fails_the_run(tmp_path: Path) -> None:
    cells = code(ROOT / "examples" / "upscale_and_compare.ipynb")
    done = run(cells[:1], tmp_path, "")
    assert done.returncode != 0, "there is no photograph in an empty folder"
    assert "StopIteration" in done.stderr
