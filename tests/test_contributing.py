"""The recipes of CONTRIBUTING.md, followed; and the places that documents name."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.conftest import write_bundle
from tudsr_runtime import Upscaler
from tudsr_runtime.batch.inputs import find_inputs
from tudsr_runtime.batch.outputs import name_output
from tudsr_runtime.engines import select
from tudsr_runtime.errors import InputError
from tudsr_runtime.pictures import formats
from tudsr_runtime.pictures.read import read_header, read_picture
from tudsr_runtime.pictures.write import write_picture

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def recipe(name: str) -> str:
    return TEXT.split(f"\n## {name}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("name", ["Add a back end", "Add a picture format"])
def test_every_file_of_a_recipe_is_there(name: str) -> None:
    steps = recipe(name)
    paths = re.findall(r"`([a-z_]+[/.][\w/.]+)`", steps)
    assert len(paths) >= 5
    for path in paths:
        file = path.replace("NAME", "openvino")
        places = (ROOT / file, ROOT / "tudsr_runtime" / "engines" / file)
        assert any(place.exists() for place in places), path


def test_every_name_of_the_recipe_of_a_back_end_is_there() -> None:
    steps = recipe("Add a back end")
    for name in ("BACKENDS", "PREFERENCE", "ON_REQUEST", "BY_NAME"):
        assert f"`{name}`" in steps
        assert getattr(select, name)


@pytest.mark.parametrize("name", select.BACKENDS)
def test_every_back_end_is_where_the_recipe_says(name: str) -> None:
    module, _, variable = select.BACKENDS[name].partition(":")
    assert hasattr(importlib.import_module(module), variable)
    pairs = (*select.PREFERENCE, *select.ON_REQUEST, *select.BY_NAME)
    assert [device for backend, device in pairs if backend == name]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    package = {"onnxruntime-rtx": "onnxruntime-ep-nv-tensorrt-rtx"}.get(name, name)
    library = re.compile(rf"{package}(-gpu)?[>\[]")
    assert [one for one, packages in extras.items() if any(map(library.match, packages))]
    rows = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8").splitlines()
    assert [row for row in rows if re.match(rf"\| [^|]*`{name}`", row)]


BACK_END = """
from tudsr_runtime.engines.backend import graph_precision

class Identity:
    parallel = 1

    def run(self, x):
        return x

    def close(self):
        pass

class Nothing:
    def probe(self, device):
        return None

    def precision(self, device, asked, offered):
        return graph_precision(asked, offered)

    def load(self, graph, variant, target):
        return Identity()

    def chain(self, engines):
        return None

BACKEND = Nothing()
"""


def test_one_file_and_one_entry_make_a_back_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx", reason="building the test's bundle needs onnx")
    (tmp_path / "nothing.py").write_text(BACK_END)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(select.BACKENDS, "nothing", "nothing:BACKEND")
    monkeypatch.setattr(select, "ON_REQUEST", (*select.ON_REQUEST, ("nothing", "cpu")))
    write_bundle(tmp_path / "bundle", tile=64)
    grey = np.full((8, 8, 3), 77, np.uint8)
    with Upscaler(tmp_path / "bundle", "nothing", "cpu", overlap=24) as upscaler:
        assert str(upscaler.choice).startswith("nothing on cpu (as asked)")
        assert (upscaler.upscale(grey, 4) == 77).all()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_module_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`((?:tudsr_\w+|tests|benchmarks|configs)/[a-z_\d/.-]*)`", text)
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("kind", formats.FORMATS.values(), ids=list(formats.FORMATS))
def test_every_picture_format_is_said_where_the_recipe_says(kind: formats.Format) -> None:
    def said(path: str) -> str:
        return (ROOT / path).read_text(encoding="utf-8")

    usual = kind.suffixes[0]
    options = said("tudsr_runtime/batch/options.py")
    assert re.search(rf'help="A [^"]*{re.escape(usual)}\b[^"]* file', options)
    assert re.search(rf'help="[^"]*\b{usual[1:]}\b[^"]*default: the input', options)
    (line,) = re.findall(r"- (.*) are read and written\.", said("README.md"))
    assert kind.name in re.split(r", | and ", line)
    (line,) = re.findall(r"    (.*) are read\. In folders", said("cli.py"))
    assert kind.name in re.split(r", | and ", line)
    pictures = said("docs/pictures.md").splitlines()
    assert [row for row in pictures if row.startswith(f"| {kind.name} | yes |")]
    assert [row for row in pictures if row.startswith("| | PNG") and f" {kind.name} |" in row]


def test_one_entry_makes_a_picture_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    file = tmp_path / "a.ppm"
    file.write_bytes(b"P6 7 5 255\n" + levels.tobytes())
    with pytest.raises(InputError, match="not a picture"):
        read_header(file)
    monkeypatch.setitem(formats.FORMATS, "PPM", formats.Format("PPM", (".ppm",), grey=False, alpha=False))
    monkeypatch.setitem(formats.FORMAT_OF_SUFFIX, ".ppm", "PPM")
    (source,) = find_inputs([tmp_path]).sources
    header = read_header(source.path)
    target, note = name_output(source, header, "x1", None)
    picture = read_picture(header)
    write_picture(picture, [np.float32(levels) / 255], 7, 5, target)
    assert (target.name, note) == ("a_x1.ppm", None)
    assert (read_picture(read_header(target)).levels == levels).all()
