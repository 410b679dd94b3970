from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.engines import select as registry
from tudsr_runtime.engines.backend import (
    Choice,
    Precision,
    Target,
    as_engine_error,
    graph_precision,
)
from tudsr_runtime.engines.onnxruntime import IDENTITY_GRAPH, PROVIDERS, SessionEngine
from tudsr_runtime.engines.select import open_backend, select
from tudsr_runtime.engines.stages import LoadedEngines
from tudsr_runtime.errors import BundleError, DeviceError, MemoryExhausted, UsageError
from tudsr_runtime.manifest import BundleFile, TensorSpec, Variant

MakeBundle = Callable[..., Path]
CPU = Choice("onnxruntime", "cpu", "for the test")


@pytest.fixture
def ort() -> Any:
    return pytest.importorskip("onnxruntime", reason="needs onnxruntime")


@pytest.fixture
def fake_ort(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An ONNX Runtime with CUDA whose sessions start on the CPU, as where a CUDA library is missing."""
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    fake = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=SimpleNamespace,
        InferenceSession=lambda *_, **__: session,
        preload_dlls=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return fake


def tile(size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32) * 2 - 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.usefixtures("ort")
def test_stage_runs_encoder_unet_and_decoder(make_bundle: MakeBundle, tmp_path: Path, dtype: str) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "b", unet="offset", dtype=dtype, tile=64))
    stage = LoadedEngines(bundle, CPU, threads=1).stage(0)
    x = tile()
    y = stage.run(x)
    assert y.dtype == np.float32
    assert y.shape == x.shape
    assert np.abs(y - (x + 0.25)).max() <= {"float32": 1e-6, "float16": 2e-3}[dtype]


@pytest.mark.parametrize(("precision", "graph"), [("bf16", "fp32"), ("fp16", "fp16"), ("fp32", "fp32")])
def test_arithmetic_that_no_graph_is_stored_in_starts_from_float32(
    install_backend: Callable[..., None], precision: str, graph: str
) -> None:
    loaded: list[tuple[str, str]] = []

    def load(_path: Path, variant: Variant, target: Target) -> SimpleNamespace:
        loaded.append((variant.precision, target.precision))
        return SimpleNamespace(parallel=1)

    def in_float32(*_: object) -> Precision:
        return Precision("fp32", "for the test")

    fake = SimpleNamespace(load=load, chain=lambda _: None, precision=in_float32)
    install_backend(fake)
    bundle = open_bundle("nano")
    choice = Choice("openvino", "cpu", "for the test", Precision(precision, "for the test"))
    LoadedEngines(bundle, choice).stage(0)
    assert loaded == [(graph, precision)] * 3


@pytest.mark.usefixtures("ort")
def test_stages_share_the_components_they_have_in_common(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "b", tile=64))
    loaded = LoadedEngines(bundle, CPU, 1)
    first, second = (loaded.stage(index).engines for index in range(2))
    assert (first[0], first[2]) == (second[0], second[2])
    names = [engine.loaded.component for engine in (*first, *second) if isinstance(engine, SessionEngine)]
    assert names == [name for i in (1, 2) for name in ("vae_encoder", f"unet_stage{i}", "vae_decoder")]


def test_a_precision_that_the_bundle_lacks_is_an_error() -> None:
    assert graph_precision("auto", ("fp16", "fp32")) == Precision("fp16", "the bundle's")
    assert graph_precision("fp32", ("fp16", "fp32")).name == "fp32"
    with pytest.raises(DeviceError, match="no bf16 graphs, only fp16, fp32") as caught:
        graph_precision("bf16", ("fp16", "fp32"))
    assert caught.value.hint == "--precision fp16"


@pytest.mark.parametrize("device", ["coreml", "directml", "migraphx"])
def test_provider_that_is_not_there_is_an_error(fake_ort: SimpleNamespace, device: str) -> None:
    with pytest.raises(DeviceError, match=r"has no \w+ExecutionProvider") as caught:
        select(device=device)
    assert caught.value.exit_code == 6
    fake_ort.get_available_providers = lambda: [PROVIDERS[device]]
    with pytest.raises(DeviceError, match=f"{device} was asked for but ONNX Runtime started CPU"):
        select(device=device)


def test_the_second_gpu_is_asked_for_by_its_number(fake_ort: SimpleNamespace) -> None:
    asked: list[Any] = []

    def session(*_: object, providers: list[Any], **__: object) -> SimpleNamespace:
        asked.extend(providers)
        return SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"])

    fake_ort.InferenceSession = session
    assert select(device="cuda:1").device == "cuda:1"
    exact_and_channels_last = {"use_tf32": "0", "prefer_nhwc": "1"}
    assert asked == [("CUDAExecutionProvider", {"device_id": "1"} | exact_and_channels_last)]


class FakeValue:
    """An OrtValue that knows where it lies; what is on the host may be looked at."""

    made: ClassVar[list[FakeValue]] = []

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: type,
        kind: str = "cpu",
        number: int = 0,
        memory_info: tuple[str, int] | None = None,
    ) -> None:
        self.array, self.place = np.zeros(shape, dtype), memory_info or (kind, number)
        self.copies = 0
        FakeValue.made.append(self)

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.dtype == self.array.dtype
        self.copies += 1
        self.array[:] = array

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data)

    def tensor_size_in_bytes(self) -> int:
        return self.array.nbytes

    def data_type(self) -> str:
        return {np.float16: "tensor(float16)", np.float32: "tensor(float)"}[self.array.dtype.type]

    def shape(self) -> tuple[int, ...]:
        return self.array.shape


def adding(number: int, component: str, bindings: list[Any], dtype: str = "float16") -> SessionEngine:
    """An engine on the second GPU that adds a number to what it is bound to."""

    def io_binding() -> SimpleNamespace:
        bound: dict[str, FakeValue] = {}
        bindings.append(bound)
        return SimpleNamespace(
            bound=bound, bind_ortvalue_input=bound.__setitem__, bind_ortvalue_output=bound.__setitem__
        )

    def run(binding: SimpleNamespace, options: object) -> None:
        assert options is not None
        binding.bound["y"].array[:] = binding.bound["x"].array + binding.bound["x"].array.dtype.type(number)

    spec = TensorSpec("x", dtype, (2,)), TensorSpec("y", dtype, (2,))
    variant = Variant(
        "m.onnx", (BundleFile("m.onnx", "0" * 64, 1),), 1, 64, "fp16", 22, (spec[0],), (spec[1],)
    )
    session = SimpleNamespace(io_binding=io_binding, run_with_iobinding=run)
    return SessionEngine(session, component, variant, "cuda:1")


@pytest.mark.parametrize("pins", [True, False])
def test_tiles_stay_on_the_device_in_tensors_that_are_bound_once(
    fake_ort: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, pins: bool
) -> None:
    monkeypatch.setattr(FakeValue, "made", [])
    make: Any = FakeValue
    if not pins:
        make = lambda shape, dtype, kind="cpu", number=0: FakeValue(shape, dtype, kind, number)  # noqa: E731
    fake_ort.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=make)
    fake_ort.RunOptions = SimpleNamespace
    if pins:
        fake_ort.OrtDeviceMemoryType = SimpleNamespace(HOST_ACCESSIBLE="pinned")
        names = ("CPUExecutionProvider", "CUDAExecutionProvider", "CUDAExecutionProvider")
        places = [
            SimpleNamespace(ep_name=name, memory_info=lambda kind, i=i: (kind, i))
            for i, name in enumerate(names)
        ]
        fake_ort.get_ep_devices = lambda: places
    bindings: list[Any] = []
    engines = [adding(number, f"engine{number}", bindings) for number in (1, 2, 4)]
    for tile in range(3):
        chain = open_backend("onnxruntime").chain(engines)
        assert chain is not None
        y = chain(np.full(2, tile, np.float32))
        assert (y.dtype, y.tolist()) == (np.dtype(np.float32), [tile + 7.0] * 2)
    host = ("pinned", 2) if pins else ("cpu", 0)
    assert [value.place for value in FakeValue.made].count(host) == 2
    on_gpu = [value for value in FakeValue.made if value.place == ("cuda", 1)]
    assert [value.copies for value in on_gpu].count(3) == 1
    assert len(FakeValue.made) == 5
    assert len(bindings) == 3
    for engine in engines:
        engine.close()


@pytest.mark.usefixtures("ort")
def test_bound_tensors_give_what_arrays_give(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """ONNX Runtime's own binding, on the CPU."""
    bundle = open_bundle(make_bundle(tmp_path / "b", unet="offset", dtype="float16", tile=64))
    stage = LoadedEngines(bundle, CPU, threads=1).stage(0)
    first = stage.engines[0]
    assert isinstance(first, SessionEngine)
    chain = first.joined([engine for engine in stage.engines if isinstance(engine, SessionEngine)])
    x = np.random.default_rng(1).random((4, 1, 3, 64, 64), dtype=np.float32) * 2 - 1
    expected = [stage.run(one) for one in x]
    with ThreadPoolExecutor(3) as pool:
        for y, other in zip(pool.map(chain.run, x), expected, strict=True):
            assert (y.dtype, y.shape) == (np.float32, other.shape)
            assert np.abs(y - other).max() <= 2e-3


@pytest.mark.usefixtures("ort")
def test_graph_that_does_not_fit_its_manifest_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    listed = open_bundle(make_bundle(tmp_path / "a", tile=64))
    other = make_bundle(tmp_path / "b", tile=128)
    variant = listed.variant("vae_encoder")
    with pytest.raises(BundleError, match=r"its input is .*128, 128.* the manifest says .*64, 64"):
        open_backend("onnxruntime").load(other / variant.model, variant, Target("cpu", "fp32", 1))


@pytest.mark.usefixtures("ort")
def test_file_that_is_no_graph_is_a_bundle_error(make_bundle: MakeBundle, tmp_path: Path) -> None:
    variant = open_bundle(make_bundle(tmp_path / "a", tile=64)).variant("vae_encoder")
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"failed while loading .*model\.onnx on cpu: .*[Pp]rotobuf"):
        open_backend("onnxruntime").load(tmp_path / "model.onnx", variant, Target("cpu", "fp32", 1))


@pytest.mark.usefixtures("ort")
def test_engine_reports_the_library_s_complaint(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "b", tile=64))
    stage = LoadedEngines(bundle, CPU, 1).stage(0)
    with pytest.raises(
        BundleError, match=r"failed while running vae_encoder with ONNX Runtime: .*invalid dimensions"
    ):
        stage.run(tile(32))


def test_probe_graph_is_valid() -> None:
    onnx = pytest.importorskip("onnx", reason="checks the probe's bytes with onnx")
    onnx.checker.check_model(onnx.load_from_string(IDENTITY_GRAPH), full_check=True)


@pytest.mark.usefixtures("ort")
def test_auto_finds_something_and_says_why() -> None:
    choice = select()
    assert choice.backend in registry.BACKENDS
    assert choice.reason
    asked = select("onnxruntime", "cpu", offered=("fp16", "fp32"))
    assert asked == Choice("onnxruntime", "cpu", "as asked", Precision("fp32", "the fastest here"))
    assert str(asked) == "onnxruntime on cpu (as asked), fp32 (the fastest here)"


def test_unknown_names_are_usage_errors() -> None:
    with pytest.raises(
        UsageError, match="no backend is called 'torch'; there are auto, openvino, onnxruntime"
    ):
        select("torch")
    with pytest.raises(UsageError, match="no device is called 'tpu'; there are auto, cuda, cpu"):
        select(device="tpu")
    with pytest.raises(UsageError, match="no precision is called 'fp8'; there are auto, fp32"):
        select(precision="fp8")
    with pytest.raises(UsageError, match="'cuda:one' must end in a number"):
        select(device="cuda:one")


def test_every_preference_names_a_back_end_that_loads() -> None:
    assert {name for name, _ in (*registry.PREFERENCE, *registry.BY_NAME)} == set(registry.BACKENDS)
    assert {device for _, device in (*registry.PREFERENCE, *registry.ON_REQUEST)} == set(registry.DEVICES)
    for name in registry.BACKENDS:
        assert callable(open_backend(name).probe)


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_missing_package_comes_with_its_pip_line(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(registry, "PREFERENCE", [one for one in registry.PREFERENCE if one[0] != "openvino"])
    with pytest.raises(DeviceError, match="ONNX Runtime cannot be imported") as caught:
        select(device=device)
    assert caught.value.hint == 'pip install "onnxruntime>=1.20"'


def test_cuda_that_falls_back_to_the_cpu_is_an_error(fake_ort: SimpleNamespace) -> None:
    with pytest.raises(DeviceError, match="cuda was asked for but ONNX Runtime started CPUExec") as caught:
        select(device="cuda")
    assert 'pip install "onnxruntime-gpu[cuda,cudnn]>=1.21"' in (caught.value.hint or "")
    assert fake_ort.get_available_providers()[0] == "CUDAExecutionProvider"


def test_auto_goes_on_to_the_cpu_and_says_so(fake_ort: SimpleNamespace) -> None:
    assert fake_ort
    choice = select("onnxruntime")
    assert choice.device == "cpu"
    assert "ONNX Runtime started CPUExecutionProvider" in choice.reason


def test_cuda_without_a_cuda_build_is_an_error(fake_ort: SimpleNamespace) -> None:
    fake_ort.get_available_providers = lambda: ["CPUExecutionProvider"]
    with pytest.raises(DeviceError, match="has no CUDAExecutionProvider"):
        select("onnxruntime", "cuda")


@pytest.mark.parametrize(
    "text",
    [
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of 12",
        "bfc_arena.cc:376 AllocateRawInternal Available memory of 12 is smaller than requested bytes of 34",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
        "bad allocation",
    ],
)
def test_out_of_memory_is_recognised_by_its_text(text: str) -> None:
    error = as_engine_error(RuntimeError(f"{text}\nmore lines"), "running unet with ONNX Runtime")
    assert isinstance(error, MemoryExhausted)
    assert error.exit_code == 7
    assert "more lines" not in str(error)


def test_other_failures_are_device_errors() -> None:
    error = as_engine_error(RuntimeError("CUDA failure 700: an illegal memory access"), "running unet")
    assert isinstance(error, DeviceError)
    assert str(error) == "failed while running unet: CUDA failure 700: an illegal memory access"
    assert isinstance(as_engine_error(MemoryError(), "running unet"), MemoryExhausted)


def test_onnx_runtime_reports_to_nobody(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """Where it does, it first writes an identifier of the machine to the cache."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    code = (
        "import sys; from tudsr_runtime import Upscaler; import numpy as np; "
        "Upscaler(sys.argv[1], 'onnxruntime', 'cpu', overlap=24).upscale(np.zeros((8, 8, 3), np.uint8), 2)"
    )
    quiet = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    home = tmp_path / "home"
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    subprocess.run(
        [sys.executable, "-c", code, str(make_bundle(tmp_path / "a", tile=64))], env=environment, check=True
    )
    assert not [*home.rglob("*onnxruntime*")]
