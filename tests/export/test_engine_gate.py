"""The gate that builds every graph with TensorRT for RTX: with the library, without it, and refused by it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.export.conftest import TILE, export
from tudsr_export import engine_gate
from tudsr_export.gates import Report
from tudsr_export.part import Graph
from tudsr_export.plan import Shape
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.engines.tensorrt.builder import BuiltEngine, EngineFacts
from tudsr_runtime.errors import DeviceError, NotFiniteError
from tudsr_runtime.manifest import TensorSpec


class Library:
    name, version = "tensorrt-rtx", "1.2.3"


def built(**changes: object) -> BuiltEngine:
    known = {
        "seconds": 1.5,
        "plan_bytes": 10,
        "activation_bytes": 46_000_000,
        "weight_bytes": 5,
        "nodes": {"CONVOLUTION": 2, "SOFTMAX": 1},
        "casts": 0,
        "kernels": 3,
        "fused_attention": 1,
    }
    spec = (TensorSpec("x", "float16", (1, 4, 64, 64)),)
    facts = EngineFacts(**(known | changes))
    return BuiltEngine("tensorrt-rtx", "1.2.3", "sm89", memoryview(b""), spec, spec, facts, (), b"")


def graph(tile: int = 512, precision: str = "fp16", name: str = "unet_stage1") -> dict[str, list[Graph]]:
    return {name: [Graph("model.onnx", (), Shape(1, tile), precision, (), 0)]}


def write_attention(folder: Path, keys: int = 8, name: str = "unet_stage1") -> None:
    """A graph of 8 queries and so many keys."""
    shape = (1, 2, 8, keys)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name in "xwy"]
    nodes = [helper.make_node("Softmax", ["x"], ["w"]), helper.make_node("Identity", ["w"], ["y"])]
    graph = helper.make_graph(nodes, "attention", ports[:1], ports[2:], value_info=ports[1:2])
    (folder / name).mkdir()
    onnx.save(helper.make_model(graph), folder / name / "model.onnx")


@pytest.fixture
def library(monkeypatch):
    """`library(engine)`: every build gives that, or raises it."""

    def use(result):
        def build(model, target, opened):
            assert (model.name, target, opened) == ("model.onnx", "sm89", Library)
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(engine_gate, "open_library", lambda _: Library)
        monkeypatch.setattr(engine_gate, "build_engine", build)

    return use


def test_without_the_library_it_is_recorded_as_not_run(tmp_path):
    report = Report()
    engine_gate.build_all(tmp_path, graph(), report, lambda _: None)
    status = report.as_json()["tensorrt_rtx"]["status"]
    assert status == "not run: tensorrt-rtx is left out of this test"


def test_figures_that_a_second_export_repeats(library, tmp_path):
    library(built())
    report = Report()
    engine_gate.build_all(tmp_path, graph(), report, lambda _: None)
    entry = report.as_json()["tensorrt_rtx"]
    assert entry["unit"] == "MB of activations"
    figures = entry["unet_stage1"]
    assert (figures["value"], figures["fused_attention"], figures["version"]) == (46.0, 1, "1.2.3")
    assert figures["types"] == ["float16", "float16"]
    assert figures["nodes"] == {"CONVOLUTION": 2, "SOFTMAX": 1}
    assert "seconds" not in figures


def test_every_size_of_tiles_is_built_in_the_own_precision(library, tmp_path):
    library(built())
    sizes = [(1, 512, "fp16"), (1, 512, "fp32"), (2, 512, "fp16"), (1, 256, "fp16"), (1, 576, "fp16")]
    graphs = [Graph("model.onnx", (), Shape(n, tile), precision, (), 0) for n, tile, precision in sizes]
    report = Report()
    engine_gate.build_all(tmp_path, {"unet_stage1": graphs}, report, lambda _: None)
    assert [m.subject for m in report.measurements] == [
        "unet_stage1", "unet_stage1, batch 1, tile 256", "unet_stage1, batch 1, tile 576",
    ]  # fmt: skip


def test_a_graph_that_cannot_be_built_fails_the_gate(library, tmp_path):
    library(DeviceError("tensorrt-rtx 1.2.3 cannot build it: node 7 'x' (Foo): unknown"))
    with pytest.raises(NotFiniteError, match=r"tensorrt_rtx: .* node 7 'x' \(Foo\): unknown; nothing is pub"):
        engine_gate.build_all(tmp_path, graph(), Report(), lambda _: None)


@pytest.mark.parametrize(
    ("tile", "precision", "facts", "fails"),
    [
        (512, "fp16", {"fused_attention": 0}, True),
        (512, "fp16", {"fused_attention": None}, False),
        (512, "fp16", {"fused_attention": 0, "nodes": {"CONVOLUTION": 1}}, False),
        (512, "fp32", {"fused_attention": 0}, False),
        (64, "fp16", {"fused_attention": 0}, False),
    ],
)
def test_attention_must_be_fused_at_full_size(tile, precision, facts, fails, library, tmp_path):
    library(built(**facts))
    write_attention(tmp_path)
    if not fails:
        engine_gate.build_all(tmp_path, graph(tile, precision), Report(), lambda _: None)
        return
    with pytest.raises(NotFiniteError, match=r"no kernel of 1\.2\.3 computes attention in one"):
        engine_gate.build_all(tmp_path, graph(tile, precision), Report(), lambda _: None)


def test_attention_to_a_prompt_alone_need_not_be_fused(library, tmp_path):
    library(built(fused_attention=0))
    write_attention(tmp_path, keys=7, name="transformer_stage1")
    report = Report()
    engine_gate.build_all(tmp_path, graph(name="transformer_stage1"), report, lambda _: None)
    assert report.as_json()["tensorrt_rtx"]["transformer_stage1"]["fused_attention"] == 0


def test_an_autoencoder_may_have_a_head_that_is_too_wide_to_fuse(library, tmp_path):
    library(built(fused_attention=0))
    report = Report()
    engine_gate.build_all(tmp_path, graph(name="vae_encoder"), report, lambda _: None)
    assert report.as_json()["tensorrt_rtx"]["vae_encoder"]["fused_attention"] == 0


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs the [rtx] extra: pip install tensorrt-rtx"
)
def test_the_real_library_builds_what_is_exported(nano, tmp_path, monkeypatch):
    from tudsr_runtime.engines.tensorrt.library import open_library

    monkeypatch.setattr(engine_gate, "open_library", open_library)
    export(nano.plan(tmp_path / "out", "fp16", stages=(1,)))
    numerics = open_bundle(tmp_path / "out").manifest.numerics["tensorrt_rtx"]
    assert set(numerics) == {"limit", "unit", "vae_encoder", "unet_stage1", "vae_decoder"}
    assert numerics["unet_stage1"]["types"] == ["float16", "float16"]
    assert numerics["unet_stage1"]["casts"] == 0
    assert numerics["unet_stage1"]["nodes"]["CONVOLUTION"] > 5
    assert open_bundle(tmp_path / "out").variant("unet_stage1").tile == TILE
