"""`tudsr build --compare`: engines against ONNX Runtime, and what Polygraphy shows of wrong ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cli
from tests.tensorrt.conftest import Machine
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.engines.tensorrt.comparison import _Polygraphy, compare_layers, difference
from tudsr_runtime.engines.tensorrt.library import open_library
from tudsr_runtime.engines.tensorrt.record import engine_folder
from tudsr_runtime.errors import DeviceError, NotFiniteError

MakeBundle = Callable[..., Path]


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path) -> Bundle:
    return open_bundle(make_bundle(tmp_path / "b", unet="offset", dtype="float16", tile=128, smaller=(64,)))


@pytest.fixture
def without_polygraphy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.config", None)


def build(machine: Machine, bundle: Bundle, *more: str) -> None:
    line = ["build", str(bundle.folder), "--engine", machine.name, "--compare", *more]
    cli.app(line, standalone_mode=False)


def test_engines_that_compute_what_their_graphs_do(
    machine: Machine, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    build(machine, bundle)
    shown = capsys.readouterr()
    names = [*bundle.manifest.components, *(f"{name}-64" for name in bundle.manifest.components)]
    for name in names:
        assert f"{name}: " in shown.err
    assert shown.err.count(" dB, largest error") == len(names)
    assert Path(shown.out.strip()).is_dir()


@pytest.mark.usefixtures("without_polygraphy")
def test_an_engine_that_is_wrong_is_named_with_or_without_polygraphy(
    machine: Machine, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.trt.error = 0.25
    with pytest.raises(
        NotFiniteError, match=r"^unet_stage1, unet_stage2, unet_stage1-64, unet_.*: below 40 dB"
    ) as caught:
        build(machine, bundle)
    assert caught.value.exit_code == 9
    said = capsys.readouterr().err
    assert "unet_stage1, layer by layer:" in said
    assert "Polygraphy cannot be imported" in said
    assert "Try: pip install " in said


def test_polygraphy_shows_where_an_engine_begins_to_be_wrong(
    machine: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = fake_polygraphy(monkeypatch)
    machine.trt.error = 0.25
    with pytest.raises(NotFiniteError):
        build(machine, bundle)
    said = capsys.readouterr().err
    assert "1 of 2 tensors are below 40 dB, from the graph's first on:\n  second: " in said
    assert asked.config.USE_TENSORRT_RTX is (machine.name == "tensorrt-rtx")
    assert ("TF32", "cleared") in asked.flags
    assert asked.outputs == {"all of them"}


def test_without_a_gpu_there_is_nothing_to_compare(machine: Machine, bundle: Bundle) -> None:
    if machine.name == "tensorrt":
        pytest.skip("needs a library that builds without a GPU: TensorRT for RTX")
    machine.cuda._count = 0
    with pytest.raises(DeviceError, match=r"nothing to compare with: tensorrt-rtx has no GPU") as caught:
        build(machine, bundle, "--target", "sm89")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("machine", ["tensorrt-rtx"], indirect=True)
def test_engines_for_another_gpu_are_not_compared(machine: Machine, bundle: Bundle) -> None:
    with pytest.raises(DeviceError, match="engines for sm86 cannot be compared here: Fake GPU is sm89"):
        build(machine, bundle, "--target", "sm86")
    assert not engine_folder(bundle, machine.library, "sm86").exists(), "said before anything is built"


def test_what_is_not_finite_is_as_far_as_can_be() -> None:
    one = np.ones(3, np.float16)
    assert difference("x", one, one).decibels == np.inf
    assert not difference("x", np.array([1, np.nan, 1], np.float16), one).close
    assert difference("x", one * np.float16(1.1), one).decibels == pytest.approx(20, abs=0.1)
    assert difference("x", one, np.zeros(3)).decibels < 0


def test_the_real_polygraphy_marks_every_tensor_of_the_graph_for_rtx() -> None:
    for package in ("polygraphy", "tensorrt_rtx"):
        pytest.importorskip(package, reason=f"needs {package}")
    polygraphy = _Polygraphy(open_library("tensorrt-rtx"))
    shipped = open_bundle("nano")
    graph = shipped.path(shipped.variant("vae_decoder"))
    _, network, _ = polygraphy.network(graph)()
    marked = {network.get_output(i).name for i in range(network.num_outputs)}
    spec = shipped.variant("vae_decoder").inputs[0]
    with polygraphy.reference(graph) as reference:
        expected = reference.infer({spec.name: np.zeros(spec.shape, spec.dtype)})
    assert len(expected) >= 3
    assert set(expected) <= marked
    with pytest.raises(DeviceError, match="Polygraphy cannot compare"):
        # The tensors are there; a GPU is not.
        compare_layers(
            graph, shipped.variant("vae_decoder"), open_library("tensorrt-rtx"), np.zeros(1, np.float32)
        )


def fake_polygraphy(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Modules like Polygraphy's, whose engine is wrong from the tensor `second` on."""
    asked = SimpleNamespace(outputs=set(), flags=[], config=SimpleNamespace())

    class Runner:
        def __init__(self, second: float) -> None:
            self.second = second

        def __enter__(self) -> Runner:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def infer(self, feed: dict[str, Any]) -> dict[str, Any]:
            (x,) = feed.values()
            assert x.dtype == np.float16
            print("Polygraphy talks on stdout")  # noqa: T201
            return {"first": x, "second": x + np.float16(self.second)}

    def mark(model: object, outputs: str) -> object:
        asked.outputs.add(outputs)
        return model

    def engine(network: object, config: Callable[..., Any]) -> object:
        return config(None, network)

    def create_config(**_: object) -> Callable[..., Any]:
        return lambda *_: SimpleNamespace(clear_flag=lambda flag: asked.flags.append((flag.name, "cleared")))

    trt = SimpleNamespace(
        NetworkFromOnnxPath=lambda path, **_: path,
        ModifyNetworkOutputs=mark,
        EngineFromNetwork=engine,
        CreateConfig=create_config,
        TrtRunner=lambda _: Runner(0.25),
    )
    modules = {
        "config": asked.config,
        "logger": SimpleNamespace(G_LOGGER=SimpleNamespace(CRITICAL=50)),
        "constants": SimpleNamespace(MARK_ALL="all of them"),
        "backend.trt": trt,
        "backend.tensorrt_rtx": SimpleNamespace(CreateConfigRTX=create_config),
        "backend.onnx": SimpleNamespace(
            OnnxFromPath=lambda path: path, ModifyOutputs=mark, BytesFromOnnx=lambda model: model
        ),
        "backend.onnxrt": SimpleNamespace(
            SessionFromOnnx=lambda model, **_: model, OnnxrtRunner=lambda _: Runner(0.0)
        ),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"polygraphy.{name}", module)
    monkeypatch.setitem(sys.modules, "polygraphy", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "polygraphy.backend", SimpleNamespace())
    return asked
