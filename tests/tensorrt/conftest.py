"""The bundles of the runtime's tests, and stand-ins for what a machine without a GPU lacks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.runtime.conftest import write_bundle
from tests.tensorrt.fakes import FakeCuda, FakeTensorRT
from tudsr_runtime.engines.select import open_backend
from tudsr_runtime.engines.tensorrt.backend import TensorRT
from tudsr_runtime.engines.tensorrt.library import Library

MakeBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def make_bundle() -> MakeBundle:
    """See tests/runtime/conftest.py."""
    pytest.importorskip("onnx", reason="building test bundles needs onnx")
    return write_bundle


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclass
class Machine:
    """A machine with a GPU that is not there: its two modules, and the library opened."""

    name: str
    trt: FakeTensorRT
    cuda: FakeCuda

    @property
    def library(self) -> Library:
        return Library(self.name, self.trt)

    @property
    def target(self) -> str:
        """What engines for its GPU are for."""
        return "sm89" if self.name == "tensorrt-rtx" else "sm89-fake-gpu-24gib"

    @property
    def backend(self) -> TensorRT:
        backend = open_backend(self.name)
        assert isinstance(backend, TensorRT)
        return backend


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Once with TensorRT, once with TensorRT for RTX. Whatever is allocated must be freed in the end."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"the stand-in for TensorRT computes with {package}")
    rtx = request.param == "tensorrt-rtx"
    cuda = FakeCuda()
    trt = FakeTensorRT(cuda, rtx, "1.7.1.116" if rtx else "11.4.0.106")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx" if rtx else "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    yield Machine(request.param, trt, cuda)
    assert cuda.live() == 0
