"""Bundles that the tests build themselves, with graphs of one or two nodes."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cli
from tudsr_runtime.engines.select import BACKENDS
from tudsr_runtime.files import file_sha256
from tudsr_runtime.manifest import (
    BundleFile,
    Component,
    Latent,
    Manifest,
    NetworkStage,
    Stage,
    TensorSpec,
    Variant,
)

MakeBundle = Callable[..., Path]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def make_bundle() -> MakeBundle:
    """`make_bundle(folder, unet="identity", dtype="float32", stages=2, tile=512)` writes a bundle there.

    The autoencoder is lossless (space to depth). `unet` is "identity", "offset" (adds 0.25), "nan", or
    "overflow" (past the greatest float16).
    """
    pytest.importorskip("onnx", reason="building test bundles needs onnx")
    return write_bundle


@pytest.fixture(scope="session")
def identity_bundle(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-stage bundle that changes nothing: its result is the bilinearly enlarged input."""
    return make_bundle(tmp_path_factory.mktemp("bundles") / "identity")


def write_bundle(
    folder: Path,
    unet: str = "identity",
    dtype: str = "float32",
    stages: int = 2,
    tile: int = 512,
    smaller: tuple[int, ...] = (),
    larger: tuple[int, ...] = (),
    macs: Callable[[str, int], int | None] = lambda *_: None,
    overlap: int | None = None,
) -> Path:
    """`smaller`, `larger`: further tile sizes that every component gets a graph for. `macs(component, tile)`:
    the multiply-adds that the manifest is to give."""
    latent = Latent(channels=48, pixels_per_cell=4, scaling_factor=1.0)

    def component(name: str, kind: str) -> Component:
        variants = (write_variant(folder, name, kind, dtype, size) for size in (tile, *smaller, *larger))
        return Component(tuple(dataclasses.replace(one, macs=macs(name, one.tile)) for one in variants))

    components = {
        "vae_encoder": component("vae_encoder", "space_to_depth"),
        "vae_decoder": component("vae_decoder", "depth_to_space"),
    }
    pairs = [("stage1", 4, 200, 0.98), ("stage2", 2, 50, 0.99)][:stages]
    planned = []
    for name, factor, timestep, alpha in pairs:
        components[f"unet_{name}"] = component(f"unet_{name}", unet)
        parts = ("vae_encoder", f"unet_{name}", "vae_decoder")
        planned.append(Stage(name, factor, timestep, *parts, alpha_cumprod=alpha))
    precision = {"float32": "fp32", "float16": "fp16"}[dtype]
    manifest = Manifest(
        1,
        "test",
        "0.1.0",
        "Apache-2.0",
        tile,
        latent,
        precision,
        tuple(planned),
        components,
        {},
        {},
        overlap=overlap,
    )
    (folder / "bundle.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder


def add_golden(folder: Path, tile: int) -> Path:
    """Give a bundle of "offset" UNets its golden tile."""
    (folder / "golden").mkdir()
    levels = np.random.default_rng(0).integers(40, 120, (tile, tile, 3), np.uint8)
    Image.fromarray(levels).save(folder / "golden" / "input.png")
    x = levels.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    inside = slice(tile * 3 // 8, tile * 5 // 8)
    for number in (1, 2):
        (x + 0.25 * number)[..., inside, inside].astype("<f4").tofile(
            folder / "golden" / f"stage{number}.f32"
        )
    list_golden(folder)
    return folder


def list_golden(folder: Path) -> None:
    """Put the files of `golden/` into bundle.json."""
    names = [f"golden/{name}" for name in ("input.png", "stage1.f32", "stage2.f32")]
    files = [
        {"path": name, "sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in names
    ]
    document = json.loads((folder / "bundle.json").read_text())
    document["golden"] = {"input": files[0], "outputs": files[1:]}
    (folder / "bundle.json").write_text(json.dumps(document))


def write_variant(folder: Path, name: str, kind: str, dtype: str, tile: int) -> Variant:
    image, cells = (1, 3, tile, tile), (1, 48, tile // 4, tile // 4)
    inputs = image if kind == "space_to_depth" else cells
    outputs = image if kind == "depth_to_space" else cells
    path = folder / name / f"model_{tile}.onnx" if (folder / name).exists() else folder / name / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    source, target = TensorSpec("x", dtype, inputs), TensorSpec("y", dtype, outputs)
    path.write_bytes(graph(kind, source, target))
    file = BundleFile(f"{name}/{path.name}", file_sha256(path), path.stat().st_size)
    precision = {"float32": "fp32", "float16": "fp16"}[dtype]
    return Variant(file.path, (file,), 1, tile, precision, 17, (source,), (target,))


def graph(kind: str, source: TensorSpec, target: TensorSpec) -> bytes:
    from onnx import TensorProto, helper

    element = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}[source.dtype]
    constants = {"offset": 0.25, "nan": float("nan"), "overflow": 1e-6}
    if kind in constants:
        value = helper.make_tensor("c", element, [1], np.array([constants[kind]], source.dtype))
        operator = "Div" if kind == "overflow" else "Add"
        node, initializers = helper.make_node(operator, ["x", "c"], ["y"]), [value]
    elif kind == "identity":
        node, initializers = helper.make_node("Identity", ["x"], ["y"]), []
    else:
        operator = {"space_to_depth": "SpaceToDepth", "depth_to_space": "DepthToSpace"}[kind]
        node, initializers = helper.make_node(operator, ["x"], ["y"], blocksize=4), []
    ends = [[helper.make_tensor_value_info(s.name, element, list(s.shape))] for s in (source, target)]
    made = helper.make_graph([node], name="g", inputs=ends[0], outputs=ends[1], initializer=initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


@dataclasses.dataclass
class FakeEngine:
    """An engine that is a Python function; counts its calls."""

    function: Callable[[np.ndarray], np.ndarray] = lambda x: x
    calls: int = 0
    closed: bool = False
    parallel: int = 1

    def run(self, x: np.ndarray) -> np.ndarray:
        self.calls += 1
        return self.function(x)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake_engine() -> type[FakeEngine]:
    """`fake_engine(function)`: an engine without an engine library, with `calls` and `closed`."""
    return FakeEngine


@pytest.fixture
def install_backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """`install_backend(backend)`: it takes the place of every back end."""

    def install(backend: Any) -> None:
        monkeypatch.setitem(sys.modules, "installed_backend", SimpleNamespace(BACKEND=backend))
        for name in BACKENDS:
            monkeypatch.setitem(BACKENDS, name, "installed_backend:BACKEND")

    return install


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


Tudsr = Callable[..., Result]


@pytest.fixture(scope="session")
def small_bundle(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "small", tile=256)


@pytest.fixture
def tudsr(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], small_bundle: Path
) -> Iterator[Tudsr]:
    """Run a command line in this process; `upscale` gets the test bundle."""

    def run(*arguments: object) -> Result:
        own = arguments[0] == "upscale" and "--bundle" not in arguments
        extra = ["--bundle", str(small_bundle)] if own else []
        monkeypatch.setattr(sys, "argv", ["tudsr", *map(str, arguments), *extra])
        capfd.readouterr()
        try:
            code = cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def network_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose one graph repeats every pixel 4 x 4 times; it may run twice. Tiles of 64 and 128 px."""
    pytest.importorskip("onnx", reason="building test bundles needs onnx")
    return write_network_bundle(tmp_path_factory.mktemp("bundles") / "network")


def write_network_bundle(folder: Path, factor: int = 4, tile: int = 64) -> Path:
    (folder / "network").mkdir(parents=True)
    variants = tuple(_network_variant(folder, factor, edge) for edge in (tile, 2 * tile))
    stages = tuple(NetworkStage(f"stage{n}", factor, "network") for n in (1, 2))
    made = {"network": {"architecture": "Repeater", "sha256": "0" * 64, "file": "x.pth"}}
    components = {"network": Component(variants)}
    manifest = Manifest(2, "net", "0.1.0", "MIT", tile, None, "fp32", stages, components, made, {})
    (folder / "bundle.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder


def _network_variant(folder: Path, factor: int, tile: int) -> Variant:
    from onnx import TensorProto, helper

    shapes = [1, 3, tile // factor, tile // factor], [1, 3, tile, tile]
    scales = helper.make_tensor("s", TensorProto.FLOAT, [4], [1.0, 1.0, factor, factor])
    node = helper.make_node(
        "Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    ends = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s)] for n, s in zip("xy", shapes, strict=True)
    ]
    made = helper.make_graph([node], "g", *ends, initializer=[scales])
    path = folder / "network" / f"model_{tile}.onnx"
    opset = helper.make_opsetid("", 17)
    path.write_bytes(helper.make_model(made, opset_imports=[opset], ir_version=8).SerializeToString())
    file = BundleFile(f"network/{path.name}", file_sha256(path), path.stat().st_size)
    source, target = (TensorSpec(n, "float32", tuple(s)) for n, s in zip("xy", shapes, strict=True))
    return Variant(file.path, (file,), 1, tile, "fp32", 17, (source,), (target,), macs=tile**2)
