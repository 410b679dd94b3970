"""The client of examples/ for Triton's ensembles, against a stand-in that speaks the KServe v2 protocol."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tracked import ROOT
from tudsr_runtime import DeviceError, Upscaler, open_bundle
from tudsr_runtime.engines.tensorrt.triton import write_repository

pytest.importorskip("onnx", reason="building the test's bundle needs onnx")
pytest.importorskip("onnxruntime", reason="running it needs onnxruntime")

DTYPES = {"TYPE_FP16": ("FP16", np.float16), "TYPE_FP32": ("FP32", np.float32)}
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("triton_client", ROOT / "examples" / "triton_client.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["triton_client"] = made
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module", params=["float32", "float16"])
def bundle(request: Any, tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "bundle"
    return make_bundle(folder, unet="offset", dtype=request.param, tile=128, smaller=(64,), overlap=24)


@pytest.fixture(scope="module")
def make_bundle() -> Callable[..., Path]:
    from tests.runtime.conftest import write_bundle

    def make(folder: Path, **how: Any) -> Path:
        folder.mkdir()
        return write_bundle(folder, **how)

    return make


@dataclass
class Triton:
    """Serves the ensembles of a repository by their configuration; the arithmetic is the bundle's own."""

    repository: Path
    upscaler: Upscaler
    address: str = ""
    asked: list[str] = field(default_factory=list)
    spoil: Callable[[np.ndarray], np.ndarray] = np.asarray
    as_text: bool = False

    def ends(self, model: str) -> list[dict[str, Any]]:
        """Input and output of a model, as its metadata names them. Raises OSError."""
        text = (self.repository / model / "config.pbtxt").read_text()
        pattern = r'^(?:in|out)put \{\n  name: "(\w+)"\n  data_type: (\w+)\n  dims: \[(.*?)\]\n\}'
        return [
            {"name": name, "datatype": DTYPES[kind][0], "shape": [*map(int, dims.split(","))]}
            for name, kind, dims in re.findall(pattern, text, re.M)
        ]

    def infer(self, model: str, body: bytes, head: int) -> tuple[dict[str, Any], bytes]:
        """Raises what a request that Triton refuses raises."""
        asked = json.loads(body[:head])
        (given,), (wanted,) = asked["inputs"], asked["outputs"]
        inside, outside = self.ends(model)
        size = given["parameters"]["binary_data_size"]
        assert (given["name"], given["datatype"], given["shape"]) == tuple(inside.values())
        assert wanted["name"] == outside["name"]
        assert len(body) == head + size
        dtype = dict(DTYPES.values())[inside["datatype"]]
        tile = np.frombuffer(body, dtype, offset=head).reshape(inside["shape"])
        place = SimpleNamespace(
            stage=int(re.findall(r"stage(\d)", model)[0]) - 1, columns=SimpleNamespace(tile=tile.shape[-1])
        )
        found = self.spoil(self.upscaler.stage(place).run(tile.astype(np.float32))).astype(dtype)
        told = {**outside, "shape": list(found.shape)}
        if self.as_text:
            return {"model_name": model, "outputs": [{**told, "data": found.ravel().tolist()}]}, b""
        raw = found.tobytes()
        told["parameters"] = {"binary_data_size": len(raw)}
        return {"model_name": model, "model_version": "1", "outputs": [told]}, raw


@contextmanager
def serving(bundle: Path, folder: Path) -> Iterator[Triton]:
    write_repository(open_bundle(bundle), folder / "models")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            model = self.path.removeprefix("/v2/models/")
            try:
                inside, outside = triton.ends(model)
            except OSError:
                self.answer(400, {"error": f"Request for unknown model: '{model}' is not found"})
                return
            self.answer(200, {"name": model, "versions": ["1"], "inputs": [inside], "outputs": [outside]})

        def do_POST(self) -> None:
            model = self.path.removeprefix("/v2/models/").removesuffix("/infer")
            triton.asked.append(model)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                told, raw = triton.infer(model, body, int(self.headers.get(LENGTH, len(body))))
            except Exception as error:
                self.answer(500, {"error": repr(error)})
                return
            self.answer(200, told, raw)

        def answer(self, status: int, told: dict[str, Any], raw: bytes = b"") -> None:
            head = json.dumps(told).encode()
            self.send_response(status)
            if raw:
                self.send_header(LENGTH, str(len(head)))
            self.send_header("Content-Length", str(len(head + raw)))
            self.end_headers()
            self.wfile.write(head + raw)

        def log_message(self, *_: object) -> None:
            pass

    with (
        Upscaler(bundle, "onnxruntime", "cpu", threads=1) as upscaler,
        ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server,
    ):
        triton = Triton(folder / "models", upscaler, f"http://127.0.0.1:{server.server_address[1]}/")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield triton
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def triton(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        with serving(bundle, tmp_path_factory.mktemp("serving")) as one:
            yield one


def random(height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("as_text", [False, True])
def test_tiles_of_a_server_give_what_tiles_of_this_machine_give(
    example: ModuleType, bundle: Path, triton: Triton, as_text: bool
) -> None:
    triton.asked.clear()
    triton.as_text = as_text
    picture = random(18, 15, 4) | np.uint8([0, 0, 0, 128])
    look = {"strength": (0.8, 1.0), "wrap": "x"}
    with example.TritonUpscaler(example.Server(triton.address), bundle=bundle, **look) as remote:
        found = remote.upscale(picture, 6.5)
        plan = remote.plan(15, 18, 6.5)
    triton.as_text = False
    with Upscaler(bundle, "onnxruntime", "cpu", threads=1, **look) as local:
        expected = local.upscale(picture, 6.5)
    assert len(triton.asked) == plan.tiles > 4
    assert set(triton.asked) <= {f"test_stage{n}{size}" for n in (1, 2) for size in ("", "-64")}
    # A server of half precision rounds what it gives.
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_smaller_tiles_are_another_ensemble(example: ModuleType, bundle: Path, triton: Triton) -> None:
    triton.asked.clear()
    with example.TritonUpscaler(example.Server(triton.address), bundle=bundle, tile=64) as remote:
        remote.upscale(random(8, 8, 3), 8)
    assert set(triton.asked) == {"test_stage1-64", "test_stage2-64"}


def test_the_command_writes_a_picture_and_says_what_is_wrong(
    example: ModuleType,
    bundle: Path,
    triton: Triton,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.fromarray(random(10, 12, 3)).save(tmp_path / "a.png")
    words = ["", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--bundle", str(bundle)]

    def run(*more: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [*words, *more])
        code: int = example.main()
        return code, capsys.readouterr().err

    assert run("--server", triton.address, "--scale", "4") == (0, "")
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (48, 40)
    code, said = run("--server", triton.address, "--suffix", "_tensorrt", "--tile", "64")
    assert code == 6
    assert "400 to v2/models/test_stage1-64_tensorrt: Request for unknown model" in said
    code, said = run("--server", "http://127.0.0.1:9/")
    assert code == 6
    assert "no answer from http://127.0.0.1:9/" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(lambda x: x[..., :8], "gave 3072 values"), (lambda x: np.full_like(x, np.nan), "NaN")],
    ids=["shape", "nan"],
)
def test_what_a_server_gets_wrong_is_an_error(
    example: ModuleType, bundle: Path, triton: Triton, spoil: Callable[..., Any], said: str
) -> None:
    with example.TritonUpscaler(example.Server(triton.address), bundle=bundle, tile=128) as remote:
        triton.spoil = spoil
        try:
            with pytest.raises(Exception, match=said) as wrong:
                remote.upscale(random(8, 8, 3), 4)
        finally:
            triton.spoil = np.asarray
    assert isinstance(wrong.value, DeviceError) == (said != "NaN")
