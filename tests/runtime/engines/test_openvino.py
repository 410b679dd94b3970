from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.engines import openvino
from tudsr_runtime.engines.backend import Choice, Precision, Target
from tudsr_runtime.engines.openvino import OpenVino
from tudsr_runtime.engines.select import select
from tudsr_runtime.engines.stages import LoadedEngines
from tudsr_runtime.errors import BundleError, DeviceError

MakeBundle = Callable[..., Path]


@pytest.fixture
def backend() -> OpenVino:
    pytest.importorskip("openvino", reason="needs openvino")
    if (limit := openvino.processor_limit()) is not None:
        pytest.skip(f"needs OpenVINO with all of the processor: unset {limit}")
    return OpenVino()


@pytest.fixture
def fake_core(monkeypatch: pytest.MonkeyPatch) -> tuple[OpenVino, SimpleNamespace]:
    """The back end over a Core that knows what the test says."""
    core = SimpleNamespace(
        available_devices=["CPU", "GPU.0", "GPU.1"],
        capabilities=["FP32", "FP16", "BF16"],
        processor="AMD EPYC",
        get_property=lambda _device, name: (
            core.processor if name == "FULL_DEVICE_NAME" else core.capabilities
        ),
    )
    monkeypatch.setattr(openvino, "open_core", lambda: core)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    return OpenVino(), core


def on_cpu(precision: str = "fp32") -> Choice:
    return Choice("openvino", "cpu", "for the test", Precision(precision, "for the test"))


def tile(size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32) * 2 - 1


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_stage_is_the_one_of_onnx_runtime(make_bundle: MakeBundle, tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    bundle = open_bundle(make_bundle(tmp_path / "b", unet="offset", dtype=dtype, tile=64))
    x = tile()
    other = Choice("onnxruntime", "cpu", "for the test")
    expected = LoadedEngines(bundle, other, 1).stage(0).run(x)
    y = LoadedEngines(bundle, on_cpu(), 1).stage(0).run(x)
    assert y.dtype == np.float32
    assert np.abs(y - expected).max() <= {"float32": 1e-6, "float16": 2e-3}[dtype]


@pytest.mark.usefixtures("backend")
def test_a_dropped_engine_is_freed_at_once(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """Whoever is short of memory cannot wait until Python looks for circles."""
    loaded = LoadedEngines(open_bundle(make_bundle(tmp_path / "b", tile=64)), on_cpu(), 1)
    gc.disable()
    try:
        stage = loaded.stage(0)
        stage.run(tile())
        stage.engines[0].run(tile())
        engines = [weakref.ref(engine) for engine in stage.engines]
        assert not loaded.give_way(tile=64)
        del stage
        assert [ref() for ref in engines] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.usefixtures("backend")
def test_threads_do_not_disturb_each_other(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tudsr_runtime.machine.processors", lambda: 2)
    bundle = open_bundle(make_bundle(tmp_path / "b", unet="offset", tile=64))
    stage = LoadedEngines(bundle, on_cpu(), threads=2).stage(0)
    assert stage.parallel == 2
    wrong: list[float] = []

    def work(value: float) -> None:
        for _ in range(20):
            y = stage.run(np.full((1, 3, 64, 64), value, np.float32))
            if np.abs(y - (value + 0.25)).max() > 1e-6:
                wrong.append(value)

    workers = [threading.Thread(target=work, args=(i / 8,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_results_are_arrays_of_their_own(backend: OpenVino, make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "b", tile=64))
    variant = bundle.variant("vae_encoder")
    engine = backend.load(bundle.path(variant), variant, Target("cpu", "fp32", 1))
    first = engine.run(tile())
    before = first.copy()
    engine.run(-tile())
    assert (first == before).all()


def test_graph_that_does_not_fit_its_manifest_is_refused(
    backend: OpenVino, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    variant = open_bundle(make_bundle(tmp_path / "a", tile=64)).variant("vae_encoder")
    other = make_bundle(tmp_path / "b", tile=128)
    with pytest.raises(BundleError, match=r"its input is .*128, 128.* the manifest says .*64, 64"):
        backend.load(other / variant.model, variant, Target("cpu", "fp32", 1))


def test_file_that_is_no_graph_is_a_bundle_error(
    backend: OpenVino, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    variant = open_bundle(make_bundle(tmp_path / "a", tile=64)).variant("vae_encoder")
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"failed while loading .*model\.onnx with OpenVINO on cpu"):
        backend.load(tmp_path / "model.onnx", variant, Target("cpu", "fp32", 1))


def test_compiled_models_are_kept_in_the_cache(
    backend: OpenVino, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path / "cache"))
    bundle = open_bundle(make_bundle(tmp_path / "a", tile=64))
    variant = bundle.variant("vae_encoder")
    backend.load(bundle.path(variant), variant, Target("cpu", "fp32", 1))
    blobs = list((tmp_path / "cache" / "openvino").rglob("*.blob"))
    assert [blob.parent.name for blob in blobs] == [variant.files[0].sha256[:16]]


def test_a_cache_that_cannot_be_written_is_done_without(
    backend: OpenVino, make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path / "file" / "cache"))
    bundle = open_bundle(make_bundle(tmp_path / "a", tile=64))
    variant = bundle.variant("vae_encoder")
    assert backend.load(bundle.path(variant), variant, Target("cpu", "fp32", 1))


def test_half_bundles_run_in_what_the_processor_has(fake_core: tuple[OpenVino, SimpleNamespace]) -> None:
    backend, core = fake_core
    assert backend.precision("cpu", "auto", ("fp16", "fp32")).name == "bf16"
    assert backend.precision("gpu", "auto", ("fp16",)).name == "fp16"
    assert backend.precision("cpu", "auto", ("fp32",)) == Precision("fp32", "the bundle's")
    assert backend.precision("cpu", "fp32", ("fp16",)) == Precision("fp32", "as asked")
    core.capabilities = ["FP32"]
    assert backend.precision("cpu", "auto", ("fp16",)) == Precision("fp32", "the processor has no bf16")
    with pytest.raises(DeviceError, match="cpu does not compute in bf16"):
        backend.precision("cpu", "bf16", ("fp16",))


@pytest.mark.parametrize(
    ("processor", "flags", "chosen"),
    [
        ("AMD EPYC", "avx512_bf16", "bf16"),
        ("Intel(R) Xeon(R)", "avx512_bf16", "fp32"),
        ("Intel(R) Xeon(R)", "avx512_bf16 amx_bf16", "bf16"),
        ("Intel(R) Xeon(R)", None, "fp32"),
    ],
)
def test_bf16_is_chosen_only_where_it_is_faster(
    fake_core: tuple[OpenVino, SimpleNamespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processor: str,
    flags: str | None,
    chosen: str,
) -> None:
    backend, core = fake_core
    core.processor = processor
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu sse {flags} avx2\n")
    monkeypatch.setattr(openvino, "CPUINFO", tmp_path / "cpuinfo")
    assert backend.precision("cpu", "auto", ("fp16", "fp32")).name == chosen
    assert backend.precision("cpu", "bf16", ("fp16", "fp32")) == Precision("bf16", "as asked")


def test_devices_are_those_that_openvino_finds(fake_core: tuple[OpenVino, SimpleNamespace]) -> None:
    backend, core = fake_core
    assert backend.probe("gpu") is backend.probe("gpu:1") is backend.probe("cpu") is None
    unavailable = backend.probe("npu")
    assert unavailable is not None
    assert unavailable.problem == "OpenVINO finds no Intel NPU here, only CPU, GPU.0, GPU.1"
    core.available_devices = ["CPU"]
    assert backend.probe("gpu:1") is not None


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_a_limit_that_makes_openvino_crash_is_said_and_another_back_end_runs(
    monkeypatch: pytest.MonkeyPatch, fake_core: tuple[OpenVino, SimpleNamespace], name: str
) -> None:
    monkeypatch.setenv(name, "AVX2")
    with pytest.raises(DeviceError, match=f"OpenVINO crashes where {name} limits the processor") as caught:
        select("openvino", "cpu")
    assert caught.value.hint == f"unset {name}"
    monkeypatch.setenv(name, "ALL")
    assert fake_core[0].probe("cpu") is None


def test_missing_package_comes_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(openvino, "_opened_core", openvino._opened_core.__wrapped__)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    with pytest.raises(DeviceError, match="OpenVINO cannot be imported") as caught:
        select("openvino", "cpu")
    assert caught.value.hint == 'pip install "openvino>=2025.0"'


FREED_ELSEWHERE = """
import gc, os, signal, sys, threading, time
from pathlib import Path
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.engines.backend import Target
from tudsr_runtime.engines.openvino import OpenVino

# A shell starts what runs in the background with this signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
bundle = open_bundle(sys.argv[1])
variant = bundle.variant("vae_encoder")
backend = OpenVino()
held = [backend, backend.load(bundle.path(variant), variant, Target("cpu", "fp32", 1))]
del backend
thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
thread.start()
thread.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.usefixtures("backend")
def test_an_interrupt_after_a_back_end_was_freed_by_another_thread(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    """OpenVINO 2026.4 frees the signal stack of the thread that loaded it."""
    folder = make_bundle(tmp_path / "a", tile=64)
    done = subprocess.run(
        [sys.executable, "-c", FREED_ELSEWHERE, str(folder)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
