"""The recipes of CONTRIBUTING.md, followed."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.conftest import write_bundle
from tudsr_runtime import Upscaler
from tudsr_runtime.engines import select

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def recipe(name: str) -> str:
    return TEXT.split(f"\n## {name}\n")[1].split("\n## ")[0]


def test_every_file_and_name_of_the_recipe_is_there() -> None:
    steps = recipe("Add a back end")
    for path in re.findall(r"`([a-z_]+[/.][\w/.]+)`", steps):
        name = path.replace("NAME", "openvino")
        places = (ROOT / name, ROOT / "tudsr_runtime" / "engines" / name)
        assert any(place.exists() for place in places), path
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
    library = re.compile(rf"{name}(-gpu)?[>\[]")
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
