"""One graph to one engine, by the real TensorRT for RTX: its builder needs no GPU."""

from __future__ import annotations

import shlex
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.tensorrt.graphs import write_graph
from tudsr_runtime.engines.tensorrt.build_log import Phases
from tudsr_runtime.engines.tensorrt.builder import build_engine
from tudsr_runtime.engines.tensorrt.library import TARGETS, Library, choose_target, open_library
from tudsr_runtime.errors import BundleError, DeviceError, UsageError
from tudsr_runtime.manifest import TensorSpec


@pytest.fixture(scope="module")
def rtx() -> Library:
    pytest.importorskip("tensorrt_rtx", reason='needs TensorRT for RTX: pip install "tudsr[rtx]"')
    return open_library("tensorrt-rtx")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_engine_and_what_is_known_about_it(rtx: Library, tmp_path: Path, dtype: str) -> None:
    seen: list[float] = []
    graph = write_graph(tmp_path / "m.onnx", "Conv", "Relu", dtype=dtype)
    built = build_engine(graph, "sm89", rtx, progress=lambda fraction, _: seen.append(fraction))
    assert built.inputs == (TensorSpec("t0", dtype, (1, 4, 8, 8)),)
    assert built.outputs == (TensorSpec("t2", dtype, (1, 4, 8, 8)),)
    assert (built.library, built.version, built.target) == ("tensorrt-rtx", rtx.version, "sm89")
    assert built.plan.nbytes == built.facts.plan_bytes > 1000
    assert built.facts.nodes["CONVOLUTION"] == 1
    assert built.facts.casts == 0
    assert built.facts.kernels == len(built.layers) >= 1
    assert {"the_conv", "the_relu"} <= {node for layer in built.layers for node in layer.nodes}
    assert built.facts.weight_bytes is not None
    assert built.facts.activation_bytes is not None
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_every_target_is_one_that_the_library_builds_for(rtx: Library) -> None:
    members = set(rtx.module.ComputeCapability.__members__)
    assert members - {"NONE", "CURRENT"} == {target.upper() for target in TARGETS}


def test_an_operator_that_does_not_exist_is_named(rtx: Library, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "m.onnx", "Relu", "MyThing", domain="nowhere")
    with pytest.raises(
        BundleError, match=r"cannot build .*m\.onnx for sm89: node 1 'the_mything' \(MyThing\): "
    ):
        build_engine(graph, "sm89", rtx)


def test_what_is_no_graph_is_refused(rtx: Library, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"tensorrt-rtx .* cannot build .*m\.onnx for sm89: ") as caught:
        build_engine(tmp_path / "m.onnx", "sm89", rtx)
    assert caught.value.exit_code == 5


def test_an_interrupted_build_ends_and_the_interruption_is_what_is_raised(
    rtx: Library, tmp_path: Path
) -> None:
    def stop(*_: Any) -> None:
        raise SystemExit(130)

    with pytest.raises(SystemExit):
        build_engine(write_graph(tmp_path / "m.onnx", "Conv"), "sm89", rtx, progress=stop)
    assert not [one for one in threading.enumerate() if one.name == "tudsr-build"]


def test_targets_that_cannot_be_meant(rtx: Library) -> None:
    with pytest.raises(UsageError, match=r"does not build for 'sm90'; it knows sm75, .*sm121"):
        choose_target(rtx, "sm90")
    assert choose_target(rtx, "sm86") == ("sm86", "as asked")


def test_without_a_gpu_the_target_must_be_said(rtx: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    no_gpu(monkeypatch)
    with pytest.raises(DeviceError, match=r"has no GPU to build for: .*no CUDA device") as caught:
        choose_target(rtx, None)
    assert "--target sm75|" in (caught.value.hint or "")


def test_tensorrt_builds_for_its_own_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    native = Library("tensorrt", SimpleNamespace(__version__="11.4.0.106"))
    no_gpu(monkeypatch)
    with pytest.raises(DeviceError, match="tensorrt has no GPU to build for"):
        choose_target(native, "sm89")
    properties = SimpleNamespace(name=b"NVIDIA H200\0", major=9, minor=0, totalGlobalMem=150_754_820_096)
    fake = SimpleNamespace(
        cudaGetDeviceCount=lambda: (0, 1), cudaGetDeviceProperties=lambda _: (0, properties)
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    for asked in (None, "sm90", "sm90-nvidia-h200-140gib"):
        assert choose_target(native, asked) == ("sm90-nvidia-h200-140gib", "this machine's NVIDIA H200")
    with pytest.raises(DeviceError, match="NVIDIA H200 is sm90, not sm89"):
        choose_target(native, "sm89")


@pytest.mark.parametrize("version", ["10.8.0.43", "12.0.0", "8.6.1"])
def test_versions_that_are_not_known_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))
    with pytest.raises(DeviceError, match=f"TensorRT {version} is installed; tudsr knows 10.9 to 11"):
        open_library("tensorrt")


def test_a_library_that_is_not_there_comes_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(DeviceError, match="tensorrt-rtx cannot be imported") as caught:
        open_library("tensorrt-rtx")
    # In which order the installed package lists them is up to what built it.
    pip, install, *wanted = shlex.split(str(caught.value.hint))
    assert (pip, install) == ("pip", "install")
    assert sorted(Requirement(one).name for one in wanted) == ["cuda-bindings", "tensorrt-rtx"]
    with pytest.raises(UsageError, match="no engine library is called 'tvm'"):
        open_library("tvm")


def test_nested_phases_make_one_fraction() -> None:
    phases = Phases()
    phases.start("build", None, 2)
    phases.start("inner", "build", 4)
    phases.step("inner", 0)
    assert phases.fraction == 0.125
    phases.start("deepest", "inner", 2)
    phases.step("deepest", 0)
    assert phases.fraction == 0.1875
    assert phases.innermost == "deepest"
    for name in ("deepest", "inner"):
        phases.finish(name)
    phases.step("build", 0)
    assert phases.fraction == 0.5
    phases.finish("build")
    assert phases.fraction == 1.0


def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        cudaGetDeviceCount=lambda: (100, 0), cudaGetErrorString=lambda _: (0, b"no CUDA device is detected")
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
