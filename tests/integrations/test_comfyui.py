"""The node of integrations/comfyui, with stand-ins for the two modules of ComfyUI that it calls.

Where TUDSR_COMFYUI names a copy of ComfyUI (and TUDSR_COMFYUI_PYTHON the Python that has its packages and
tudsr), also in that, without a browser.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runtime.conftest import write_bundle
from tests.tracked import ROOT
from tudsr_runtime import Upscaler
from tudsr_runtime.planes import WRAPS
from tudsr_runtime.tiling.color import COLOR_METHODS

FOLDER = ROOT / "integrations" / "comfyui"
torch = pytest.importorskip("torch", reason="ComfyUI brings torch, and here nobody does")


class Interrupted(Exception):  # noqa: N818 - as ComfyUI's
    pass


class Comfy:
    """What a user of ComfyUI sees of the work, and may do."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, int]] = []
        self.stop_after: int | None = None

    def bar(self, _: int) -> Any:
        return SimpleNamespace(update_absolute=lambda done, total: self.shown.append((done, total)))

    def check(self) -> None:
        if self.stop_after is not None and len(self.shown) >= self.stop_after:
            raise Interrupted


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> Comfy:
    made = Comfy()
    utils, management = ModuleType("comfy.utils"), ModuleType("comfy.model_management")
    utils.ProgressBar = made.bar  # type: ignore[attr-defined]
    management.throw_exception_if_processing_interrupted = made.check  # type: ignore[attr-defined]
    for name, module in (
        ("comfy", ModuleType("comfy")),
        ("comfy.utils", utils),
        ("comfy.model_management", management),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.fixture
def node(comfy: Comfy, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The node's class, loaded as ComfyUI does: the folder as a package of another name."""
    assert comfy
    spec = importlib.util.spec_from_file_location("custom_nodes_tudsr", FOLDER / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "custom_nodes_tudsr", module)
    spec.loader.exec_module(module)
    (kind,) = module.NODE_CLASS_MAPPINGS.values()
    assert {*module.NODE_DISPLAY_NAME_MAPPINGS} == {*module.NODE_CLASS_MAPPINGS}
    yield kind
    if kind._loaded is not None:
        kind._loaded[1].close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="building the test's bundle needs onnx")
    return write_bundle(tmp_path_factory.mktemp("bundle") / "b", tile=256)


def batch(count: int = 2, channels: int = 3) -> Any:
    return torch.from_numpy(np.random.default_rng(0).random((count, 6, 9, channels), np.float32))


def run(node: Any, image: Any, scale: float = 2.5, strength: float = 1.0, **settings: Any) -> Any:
    (result,) = getattr(node(), node.FUNCTION)(image=image, scale=scale, strength=strength, **settings)
    return result


def test_the_interface_is_one_that_comfyui_can_show(node: Any) -> None:
    inputs = node.INPUT_TYPES()
    offered = {**inputs["required"], **inputs["optional"]}
    taken = inspect.signature(getattr(node, node.FUNCTION)).parameters
    assert [*taken] == ["self", *offered]
    assert node.RETURN_TYPES == ("IMAGE",)
    assert offered["image"] == ("IMAGE",)
    for kind, facts in (value for name, value in offered.items() if name != "image"):
        assert facts["default"] in kind if isinstance(kind, list) else kind in ("FLOAT", "STRING")
    for name, known in (("color", COLOR_METHODS), ("wrap", WRAPS)):
        assert offered[name][0] == [*known]
    for name in inputs["optional"]:
        assert taken[name].default == offered[name][1]["default"]


@pytest.mark.parametrize("channels", [3, 4])
def test_a_batch_is_enlarged_as_by_the_upscaler(node: Any, comfy: Comfy, bundle: Path, channels: int) -> None:
    images = batch(channels=channels)
    larger = run(node, images, bundle=str(bundle))
    assert larger.dtype == torch.float32
    assert larger.shape == (2, 15, 23, channels)
    with Upscaler(bundle) as upscaler:
        for image, result in zip(images, larger, strict=True):
            assert np.abs(upscaler.upscale(image.numpy(), 2.5) - result.numpy()).max() < 1e-6
    done, total = comfy.shown[-1]
    assert done == total
    assert comfy.shown == sorted(comfy.shown)


def test_values_that_other_nodes_overshoot_are_clipped(node: Any, bundle: Path) -> None:
    larger = run(node, batch() * 3 - 1, bundle=str(bundle))
    assert 0 <= float(larger.min()) <= float(larger.max()) <= 1


def test_stop_stops_at_the_next_tile_and_the_next_run_works(node: Any, comfy: Comfy, bundle: Path) -> None:
    comfy.stop_after = 1
    with pytest.raises(Interrupted):
        run(node, batch(), bundle=str(bundle))
    assert len(comfy.shown) == 1
    comfy.stop_after = None
    assert run(node, batch(), bundle=str(bundle)).shape[0] == 2


def test_engines_are_kept_until_another_bundle_or_device_is_asked_for(node: Any, bundle: Path) -> None:
    run(node, batch(), bundle=str(bundle))
    first = node._loaded[1]
    for look in ({"wrap": "x"}, {"color": "none"}, {"strength": 0.5}, {}):
        result = run(node, batch(1), 3.0, bundle=str(bundle), **look)
        assert node._loaded[1] is first
        with Upscaler(bundle, **look) as upscaler:
            alone = upscaler.upscale(batch(1)[0].numpy(), 3.0)
        assert np.abs(alone - result[0].numpy()).max() < 1e-6, look
    run(node, batch(), bundle=str(bundle), device="cpu")
    assert node._loaded[1] is not first


def test_an_error_says_what_to_do(node: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no bundle '.*missing'.*Try: a folder with a bundle.json"):
        run(node, batch(), bundle=str(tmp_path / "missing"))


def test_the_registry_is_told_of_this_version() -> None:
    from tudsr_runtime.version import __version__

    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == __version__


class Real:
    """A ComfyUI that runs, over its HTTP interface."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self._address}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = answer.read()
        return json.loads(said) if said else None

    def run(self, picture: str, **inputs: object) -> Any:
        """What the history says of a workflow: load, enlarge, save."""
        workflow = {
            "load": {"class_type": "LoadImage", "inputs": {"image": picture}},
            "enlarge": {"class_type": "TudsrUpscale", "inputs": {"image": ["load", 0], **inputs}},
            "save": {
                "class_type": "SaveImage",
                "inputs": {"images": ["enlarge", 0], "filename_prefix": "out"},
            },
        }
        prompt = self.ask("/prompt", {"prompt": workflow})["prompt_id"]
        while not (history := self.ask(f"/history/{prompt}")):
            time.sleep(0.2)
        return history[prompt]


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Real]:
    home = os.environ.get("TUDSR_COMFYUI")
    if home is None:
        pytest.skip("TUDSR_COMFYUI names no copy of ComfyUI")
    for name in ("custom_nodes", "input", "output", "front"):
        (tmp_path / name).mkdir()
    (tmp_path / "front" / "index.html").touch()
    (tmp_path / "custom_nodes" / "tudsr").symlink_to(FOLDER, target_is_directory=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    python = os.environ.get("TUDSR_COMFYUI_PYTHON", sys.executable)
    options = ["--cpu", "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
    places = ["--base-directory", tmp_path, "--front-end-root", tmp_path / "front", "--port", str(port)]
    log = tmp_path / "log"
    with open(log, "wb") as said:
        process = subprocess.Popen([python, "main.py", *options, *places], cwd=home, stdout=said, stderr=said)
    comfyui = Real(f"http://127.0.0.1:{port}")
    try:
        while True:
            assert process.poll() is None, log.read_text(errors="replace")
            try:
                comfyui.ask("/queue")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
            else:
                break
        yield comfyui
    finally:
        process.kill()
        process.wait()


def test_in_a_real_comfyui_the_picture_is_the_upscalers(real: Real, tmp_path: Path, bundle: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(levels).save(tmp_path / "input" / "photo.png")
    told = real.run("photo.png", scale=2.5, strength=0.5, bundle=str(bundle), color="adain", wrap="x")
    assert told["status"]["status_str"] == "success", told
    (saved,) = told["outputs"]["save"]["images"]
    with Image.open(tmp_path / "output" / saved["filename"]) as image:
        made = np.asarray(image).astype(float)
    with Upscaler(bundle, strength=0.5, color="adain", wrap="x") as upscaler:
        assert np.abs(made - upscaler.upscale(levels, 2.5)).max() <= 1
    failed = real.run("photo.png", scale=2.0, strength=1.0, bundle=str(tmp_path / "missing"))
    (error,) = (text for kind, text in failed["status"]["messages"] if kind == "execution_error")
    assert "Try: a folder with a bundle.json" in error["exception_message"]
