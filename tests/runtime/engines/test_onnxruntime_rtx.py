"""ONNX Runtime's TensorRT for RTX plug-in, by stand-ins for both; it needs an NVIDIA GPU's driver to load."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.engines import onnxruntime_rtx
from tudsr_runtime.engines.backend import Target
from tudsr_runtime.engines.select import open_backend, select
from tudsr_runtime.errors import DeviceError, MemoryExhausted
from tudsr_runtime.installation import install_hint

MakeBundle = Callable[..., Path]
NAME = "NvTensorRTRTXExecutionProvider"
NO_DRIVER = (
    "[ONNXRuntimeError] : 1 : FAIL : Failed to load library libonnxruntime_providers_nv_tensorrt_rtx.so "
    "with error: libcuda.so.1: cannot open shared object file: No such file or directory"
)
"""What ONNX Runtime 1.32 said of plug-in 0.5 where there is no driver."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """An ONNX Runtime whose plug-in finds two GPUs, and records what is asked of it."""

    class Options:
        def add_provider_for_devices(self, places: list[Any], options: dict[str, str]) -> None:
            self.places, self.options = places, options

    def session(graph: object, options: Options) -> SimpleNamespace:
        known.opened.append((graph, options))
        return SimpleNamespace(
            get_providers=lambda: known.active,
            get_inputs=lambda: known.ends[0],
            get_outputs=lambda: known.ends[1],
        )

    def register(name: str, path: str) -> None:
        known.registered.append((name, path))

    gpus = [SimpleNamespace(ep_name=NAME, number=number) for number in range(2)]
    known = SimpleNamespace(
        opened=[],
        registered=[],
        active=[NAME, "CPUExecutionProvider"],
        ends=([], []),
        SessionOptions=Options,
        InferenceSession=session,
        register_execution_provider_library=register,
        get_ep_devices=lambda: [SimpleNamespace(ep_name="CPUExecutionProvider"), *gpus],
        get_available_providers=lambda: ["CPUExecutionProvider"],
    )
    plugin = SimpleNamespace(get_ep_name=lambda: NAME, get_library_path=lambda: "plugin.so")
    monkeypatch.setitem(sys.modules, "onnxruntime", known)
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)
    monkeypatch.setattr(onnxruntime_rtx, "_REGISTERED", set())
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path / "cache"))
    return known


def test_the_gpu_of_that_number_runs_and_what_it_compiles_is_kept(
    fake: SimpleNamespace, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "b", dtype="float16", tile=64))
    variant = bundle.variant("vae_encoder")
    kinds = {"float16": "tensor(float16)", "float32": "tensor(float)"}
    fake.ends = tuple(
        [SimpleNamespace(name=one.name, type=kinds[one.dtype], shape=one.shape) for one in side]
        for side in (variant.inputs, variant.outputs)
    )
    choice = select(device="cuda:1", offered=bundle.precisions)
    assert (choice.backend, choice.device) == ("onnxruntime-rtx", "cuda:1")
    backend = open_backend("onnxruntime-rtx")
    engine = backend.load(bundle.path(variant), variant, Target("cuda:1", "fp16"))
    assert backend.chain([engine]) is None
    graph, options = fake.opened[-1]
    assert graph == str(bundle.path(variant))
    assert [place.number for place in options.places] == [1]
    kept = Path(options.options["nv_runtime_cache_path"])
    assert kept.is_dir()
    assert kept.is_relative_to(tmp_path / "cache")
    assert fake.registered == [(NAME, "plugin.so")]


def test_what_is_missing_is_said(fake: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="finds 2 GPUs here"):
        select("onnxruntime-rtx", "cuda:2")
    with pytest.raises(DeviceError, match="does not run on cpu"):
        select("onnxruntime-rtx", "cpu")
    fake.active = ["CPUExecutionProvider"]
    with pytest.raises(DeviceError, match=f"{NAME} was asked for but ONNX Runtime started CPU"):
        select("onnxruntime-rtx")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(DeviceError, match="TensorRT for RTX cannot be imported") as caught:
        select("onnxruntime-rtx")
    assert caught.value.hint == install_hint("rtx-provider")


def test_no_driver_and_too_little_memory_are_told_apart(fake: SimpleNamespace) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(text)

    fake.register_execution_provider_library, text = fail, NO_DRIVER
    with pytest.raises(DeviceError, match=r"libcuda\.so\.1: cannot open shared object file") as caught:
        select("onnxruntime-rtx")
    assert caught.value.hint == "nvidia-smi shows GPUs and driver"
    fake.register_execution_provider_library = lambda *_: None
    fake.InferenceSession, text = fail, "CUDA failure 2: out of memory ; GPU=0"
    with pytest.raises(MemoryExhausted):
        onnxruntime_rtx._open_session("m.onnx", "cuda", None)
