from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.engines import openvino as openvino_backend
from tudsr_runtime.engines import openvino_weights
from tudsr_runtime.engines.backend import Target
from tudsr_runtime.engines.openvino_weights import map_weights
from tudsr_runtime.errors import OutputError

ov = pytest.importorskip("openvino", reason="needs openvino")
pytestmark = pytest.mark.skipif(
    openvino_backend.processor_limit() is not None, reason="needs OpenVINO with all of the processor"
)


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_weights, "LARGE", 1_000_000)


def half_model(path: Path) -> Path:
    """A graph as the export makes them: float32 arithmetic on half weights, of every kind of use."""
    from openvino import opset13 as op

    rng = np.random.default_rng(0)

    def half(*shape: int) -> Any:
        return op.convert(op.constant((rng.standard_normal(shape) * 0.05).astype(np.float16)), "f32")

    x = op.parameter([1, 128, 8, 8], np.float32)
    y = op.convolution(x, half(128, 128, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])
    y = op.reshape(op.add(y, half(1, 128, 1, 1)), np.array([1, 64, 128]), False)
    y = op.matmul(op.matmul(y, half(128, 1024), False, False), half(128, 1024), False, True)
    shared = half(512, 512)
    y = op.reshape(y, np.array([1, 16, 512]), False)
    y = op.matmul(op.matmul(y, shared, False, False), shared, False, True)
    exact = op.constant(rng.standard_normal((512, 512)).astype(np.float32))
    ov.save_model(ov.Model([op.result(op.matmul(y, exact, False, False))], [x]), path, compress_to_fp16=False)
    return path


def ran(model: Any) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((1, 128, 8, 8), dtype=np.float32)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled({0: x})[0])


def test_the_model_computes_the_same(tmp_path: Path) -> None:
    path = half_model(tmp_path / "model.xml")
    core = ov.Core()
    model, weights = map_weights(lambda: core.read_model(path), tmp_path / "kept", "name")
    assert weights is not None
    large = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant" and node.data.size >= openvino_weights.WORTH_MAPPING
    ]
    assert sorted(tuple(node.shape) for node in large) == [
        (128, 128, 3, 3),
        (128, 1024),
        (512, 512),
        (512, 512),
        (1024, 128),
    ]
    assert {node.get_element_type().to_string() for node in large} == {"f32"}
    expected = ran(core.read_model(path))
    with weights.evicted():
        y = ran(model)
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_file_is_written_once_and_again_when_it_was_cut_short(tmp_path: Path) -> None:
    path, folder = half_model(tmp_path / "model.xml"), tmp_path / "kept"
    core = ov.Core()

    told: list[str] = []

    def mapped(name: str) -> Any:
        return map_weights(lambda: core.read_model(path), folder, name, told.append)[0]

    folder.mkdir()
    (folder / ".tudsr-killed.tmp").write_bytes(b"what a killed process left")
    expected = ran(mapped("name"))
    (file,) = folder.iterdir()
    written = file.stat()
    mapped("name")
    assert file.stat().st_ino == written.st_ino
    assert file.stat().st_mtime_ns == written.st_mtime_ns
    assert len(told) == 1
    assert str(file) in told[0]
    os.truncate(file, written.st_size - 1)
    assert np.abs(ran(mapped("name")) - expected).max() <= 1e-5 * np.abs(expected).max()
    assert file.stat().st_size == written.st_size
    mapped("other")
    assert len(list(folder.iterdir())) == 2


def test_a_small_model_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = half_model(tmp_path / "model.xml")
    monkeypatch.setattr(openvino_weights, "LARGE", 1 << 40)
    core = ov.Core()
    model, weights = map_weights(lambda: core.read_model(path), tmp_path / "kept", "name")
    assert weights is None
    assert not (tmp_path / "kept").exists()
    assert len(model.get_ordered_ops()) == len(core.read_model(path).get_ordered_ops())


def test_without_a_file_it_runs_all_the_same_and_says_so(
    make_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OutputError("cannot write the file: no space left on device")

    monkeypatch.setattr(openvino_backend, "map_weights", refuse)
    bundle = open_bundle(make_bundle(tmp_path / "b", tile=64))
    variant, told = bundle.variant("vae_encoder"), SimpleNamespace(lines=[])
    target = Target("cpu", "fp32", 1, notify=told.lines.append)
    engine = openvino_backend.OpenVino().load(bundle.path(variant), variant, target)
    assert engine.run(np.zeros((1, 3, 64, 64), np.float32)).shape[0] == 1
    assert len(told.lines) == 1
    assert "vae_encoder" in told.lines[0]
    assert "no space left" in told.lines[0]


def test_a_bundle_runs_the_same_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path / "cache"))
    bundle = open_bundle("nano")
    variant = bundle.variant("unet_stage1", preferred="fp32")
    x = np.random.default_rng(0).standard_normal(variant.inputs[0].shape, dtype=np.float32)

    def ran() -> np.ndarray:
        return openvino_backend.OpenVino().load(bundle.path(variant), variant, Target("cpu", "fp32")).run(x)

    mapped = ran()
    files = list((tmp_path / "cache").rglob("*.f32"))
    assert [file.parent.name for file in files] == [variant.files[0].sha256[:16]]
    assert not list((tmp_path / "cache").rglob("*.blob"))
    monkeypatch.setattr(openvino_weights, "LARGE", 1 << 40)
    expected = ran()
    assert list((tmp_path / "cache").rglob("*.blob"))
    assert np.abs(mapped - expected).max() <= 1e-4 * np.abs(expected).max()


MEASURED = """
import sys
from pathlib import Path
import numpy as np
import openvino as ov
from openvino import opset13 as op
from tudsr_runtime.engines.openvino_weights import map_weights

folder, kind = Path(sys.argv[1]), sys.argv[2]
core, path = ov.Core(), folder / "model.xml"
if not path.exists():
    x = y = op.parameter([1, 640, 8, 8], np.float32)
    for i in range(8):
        w = (np.random.default_rng(i).standard_normal((640, 640, 3, 3)) * 0.01).astype(np.float16)
        y = op.convolution(y, op.convert(op.constant(w), "f32"), [1, 1], [1, 1], [1, 1], [1, 1])
    ov.save_model(ov.Model([op.result(y)], [x]), path, compress_to_fp16=False)
    map_weights(lambda: core.read_model(path), folder, "w")
    sys.exit()

def resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024

config = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": 1}
before = resident("VmRSS")
if kind == "plain":
    compiled = core.compile_model(core.read_model(path), "CPU", config)
else:
    model, weights = map_weights(lambda: core.read_model(path), folder, "w")
    with weights.evicted():
        compiled = core.compile_model(model, "CPU", config)
compiled({0: np.ones((1, 640, 8, 8), np.float32)})
print((resident("VmRSS") - before) / (8 * 640 * 640 * 9 * 4))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's figures of a process's memory")
def test_it_takes_little_more_than_the_packed_weights(tmp_path: Path) -> None:
    def measured(kind: str) -> str:
        command = [sys.executable, "-c", MEASURED, str(tmp_path), kind]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    measured("write")
    # Twice the weights, and once; the library itself is some of them more.
    assert float(measured("mapped")) < float(measured("plain")) - 0.7
