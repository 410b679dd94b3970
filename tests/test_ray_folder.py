"""The example on Ray Data, with one actor on as many CPUs as it needs, and no more; needs Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tracked import ROOT

pytest.importorskip("ray.data", reason="needs ray[data]", exc_type=ImportError)
pytest.importorskip("onnxruntime", reason="upscaling needs the [cpu] extra")

pytestmark = pytest.mark.slow


def test_a_folder_is_done_on_one_cpu_and_only_once(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "below").mkdir(parents=True)
    for name in ("a.png", "below/b.jpg"):
        Image.fromarray(np.full((20, 24, 3), 99, np.uint8)).save(photos / name)
    (photos / "broken.png").write_text("no picture")
    words = [ROOT / "examples" / "ray_folder.py", "photos", "large", "--scale", "2", "--cpus", "1"]
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run() -> tuple[int, list[str]]:
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, sorted(
            line.replace(f"file://{photos}/", "") for line in done.stdout.splitlines()
        )

    broken = "failed: broken.png: not a picture, or a damaged one"
    assert run() == (4, [broken, "ok: a.png", "ok: below/b.jpg"])
    found = {path.relative_to(tmp_path / "large").as_posix() for path in (tmp_path / "large").rglob("*.*")}
    assert found == {"a.png", "below/b.jpg"}
    with Image.open(tmp_path / "large" / "below" / "b.jpg") as image:
        assert (image.size, image.format) == ((48, 40), "JPEG")
    (photos / "broken.png").unlink()
    assert run() == (0, ["skipped: a.png: it is there", "skipped: below/b.jpg: it is there"])
