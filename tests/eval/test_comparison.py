"""`tudsr upscale --compare`: inputs, bicubic and results side by side, in a page or a picture."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli import app
from tests.runtime.conftest import write_bundle
from tudsr_eval import comparison
from tudsr_eval.comparison import DETAIL, GAP, LINE, Comparison, detail
from tudsr_runtime.errors import OutputError, TudsrError, UsageError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that changes nothing."""
    pytest.importorskip("onnx", reason="building the test's bundle needs onnx")
    return write_bundle(tmp_path_factory.mktemp("bundle") / "b", tile=256)


@pytest.fixture
def upscale(bundle: Path) -> Any:
    def run(*words: object) -> None:
        app(["upscale", *map(str, words), "--bundle", str(bundle)], standalone_mode=False)

    return run


def draw(path: Path, width: int = 20, height: int = 12, mode: str = "RGB") -> Path:
    path.parent.mkdir(exist_ok=True)
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    Image.fromarray(levels).convert(mode).save(path)
    return path


def page_data(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def shown(panel: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(panel["src"].partition(",")[2]))).convert("RGB"))


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_a_page_holds_input_bicubic_and_result(upscale: Any, tmp_path: Path) -> None:
    upscale(draw(tmp_path / "a.png"), "--scale", "4", "--compare", tmp_path / "c.html")
    data = page_data(tmp_path / "c.html")
    (case,) = data["cases"]
    assert case["name"] == "a.png, 80 x 48"
    assert [panel["label"] for panel in case["panels"]] == ["input", "bicubic", "tudsr"]
    pictures = [shown(panel) for panel in case["panels"]]
    small = Image.open(tmp_path / "a.png").convert("RGB")
    assert (pictures[0] == np.asarray(small)).all()
    assert (pictures[1] == np.asarray(small.resize((80, 48), Image.Resampling.BICUBIC))).all()
    assert (pictures[2] == np.asarray(Image.open(tmp_path / "a_x4.png"))).all()
    assert data["methods"][1]["means"]["consistency"] is not None


def test_a_picture_holds_a_row_for_each_input(upscale: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw(tmp_path / "in" / f"{name}.png")
    upscale(tmp_path / "in", "-o", tmp_path / "out", "--scale", "4", "--compare", tmp_path / "c.png")
    sheet = np.asarray(Image.open(tmp_path / "c.png"))
    assert sheet.shape == (3 * GAP + 2 * (LINE + 48), 4 * GAP + 3 * 80, 3)
    small = Image.open(tmp_path / "in" / "a.png").convert("RGB")
    kinds = [small.resize((80, 48), how) for how in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)]
    kinds.append(Image.open(tmp_path / "out" / "a_x4.png"))
    top = GAP + LINE
    for number, expected in enumerate(kinds):
        left = GAP + number * (80 + GAP)
        assert (sheet[top : top + 48, left : left + 80] == np.asarray(expected)).all(), number
    assert (sheet[GAP : GAP + LINE] < 128).any(), "text"


def test_the_same_command_again_shows_the_same(upscale: Any, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    command = (tmp_path, "--scale", "2", "--compare", tmp_path / "c.png")
    upscale(*command)
    before = (tmp_path / "c.png").read_bytes()
    upscale(*command)
    assert (tmp_path / "c.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["a.png", "a_x2.png", "c.png"]


def test_what_is_no_comparison_is_not_replaced(upscale: Any, tmp_path: Path) -> None:
    for name in ("mine.png", "mine.html"):
        draw(tmp_path / "mine.png").replace(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with pytest.raises(OutputError, match="is no comparison"):
            upscale(draw(tmp_path / "a.png"), "--compare", tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    assert not (tmp_path / "a_x8.png").exists(), "refused before any work"


@pytest.mark.parametrize(
    ("name", "kind"), [("c.jpg", UsageError), ("c", UsageError), ("no/c.png", OutputError)]
)
def test_a_name_that_cannot_be_is_refused_before_work(
    upscale: Any, tmp_path: Path, name: str, kind: type[TudsrError]
) -> None:
    with pytest.raises(kind):
        upscale(draw(tmp_path / "a.png"), "--compare", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", ["html", "png"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16"])
def test_pictures_of_every_kind_are_shown(upscale: Any, tmp_path: Path, mode: str, suffix: str) -> None:
    photo = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(np.arange(240, dtype=np.uint16).reshape(12, 20) * 270).save(photo)
    else:
        draw(photo, mode=mode)
    upscale(photo, "--width", "100", "--height", "33", "--compare", tmp_path / f"c.{suffix}")
    if suffix == "html":
        (case,) = page_data(tmp_path / "c.html")["cases"]
        assert [shown(panel).shape[:2] for panel in case["panels"]] == [(12, 20), (33, 100), (33, 100)]
    else:
        assert size(tmp_path / "c.png") == (4 * GAP + 300, 2 * GAP + LINE + 33)


def test_a_batch_with_a_bad_picture_is_compared_all_the_same(upscale: Any, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    with pytest.raises(TudsrError, match="1 of 2 pictures failed"):
        upscale(tmp_path / "in", "--compare", tmp_path / "c.html")
    assert len(page_data(tmp_path / "c.html")["cases"]) == 1


def test_a_dry_run_compares_nothing(upscale: Any, tmp_path: Path) -> None:
    upscale(draw(tmp_path / "a.png"), "--dry-run", "--compare", tmp_path / "c.html")
    assert not (tmp_path / "c.html").exists()


def test_of_many_some_are_shown_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "IN_A_PICTURE", 3)
    made, notes = Comparison(tmp_path / "c.png"), []
    for number in range(7):
        path = draw(tmp_path / f"{number}.png")
        made.add(path, path)
    made.write(notes.append)
    assert size(tmp_path / "c.png")[1] == GAP + 3 * (GAP + LINE + 12)
    assert "shows 3 of 7 pictures" in notes[0]
    empty = Comparison(tmp_path / "d.png")
    empty.write(notes.append)
    assert "nothing to compare" in notes[-1]
    assert not (tmp_path / "d.png").exists()


def test_the_detail_is_where_something_is() -> None:
    picture = np.zeros((900, 1500, 3), np.uint8)
    picture[600:800, 1200:1400] = np.random.default_rng(0).integers(0, 256, (200, 200, 1))
    left, top, right, bottom = detail(picture)
    assert (right - left, bottom - top) == (DETAIL, DETAIL)
    assert left <= 1200
    assert right >= 1400
    assert top <= 600
    assert bottom >= 800
    assert detail(picture[:40, :30]) == (0, 0, 30, 40)
