"""The model repository for Triton Inference Server, read with Triton's own message types where they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tensorrt.conftest import Machine
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.engines.tensorrt.store import Wanted, ensure_engines
from tudsr_runtime.engines.tensorrt.triton import write_repository
from tudsr_runtime.errors import DeviceError, OutputError, UsageError
from tudsr_runtime.files import file_sha256

MakeBundle = Callable[..., Path]
COMPONENTS = ("unet_stage1", "unet_stage2", "vae_decoder", "vae_encoder")
ONNX_MODELS = {f"test_{name}" for name in (*COMPONENTS, "stage1", "stage2")}


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path) -> Bundle:
    return open_bundle(make_bundle(tmp_path / "bundle", unet="offset", dtype="float16", tile=64))


def read_config(folder: Path) -> Any:
    """A config.pbtxt as Triton reads it: an unknown field or a wrong type is an error."""
    messages = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2",
        reason="reading Triton's configuration needs tritonclient[grpc]",
        exc_type=(ImportError, RuntimeError),
    )
    text_format = pytest.importorskip("google.protobuf.text_format", reason="needs protobuf")
    return text_format.Parse((folder / "config.pbtxt").read_text(), messages.ModelConfig())


def run_model(repository: Path, name: str, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What Triton would compute, from nothing but the repository."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the repository's models")
    config = read_config(repository / name)
    assert config.name == name
    for one in config.input:
        assert list(feed[one.name].shape) == list(one.dims)
        assert feed[one.name].dtype == {10: np.float16, 11: np.float32}[one.data_type]
    if config.platform == "ensemble":
        known = dict(feed)
        for step in config.ensemble_scheduling.step:
            given = {inside: known[outside] for inside, outside in step.input_map.items()}
            found = run_model(repository, step.model_name, given)
            known |= {outside: found[inside] for inside, outside in step.output_map.items()}
        return {one.name: known[one.name] for one in config.output}
    assert config.backend == "onnxruntime"
    model = repository / name / "1" / config.default_model_filename
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return dict(zip([one.name for one in config.output], session.run(None, feed), strict=True))


def test_a_stage_is_an_ensemble_that_computes_what_the_bundle_does(bundle: Bundle, tmp_path: Path) -> None:
    names = write_repository(bundle, tmp_path / "models")
    assert set(names) == ONNX_MODELS == {one.name for one in (tmp_path / "models").iterdir()}
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float16)
    assert (tmp_path / "models" / "test_stage1" / "1").is_dir()
    found = run_model(tmp_path / "models", "test_stage1", {"x_L": x})
    assert np.abs(found["x_H"].astype(np.float32) - (x + 0.25)).max() <= 2e-3


@pytest.mark.parametrize("machine", ["tensorrt"], indirect=True)
def test_every_size_of_tiles_is_a_model_over_the_same_weights(
    make_bundle: MakeBundle, machine: Machine, tmp_path: Path
) -> None:
    bundle = open_bundle(with_shared_weights(make_bundle(tmp_path / "b", tile=128, smaller=(64,))))
    own = Wanted(bundle, machine.library, "sm89", names=frozenset(COMPONENTS))
    engines = ensure_engines(own, tmp_path / "engines").path
    names = set(write_repository(bundle, tmp_path / "models", [engines]))
    smaller = {f"{name}-64" for name in ONNX_MODELS}
    assert names == ONNX_MODELS | smaller | {f"{name}_tensorrt" for name in ONNX_MODELS}
    text = (tmp_path / "models" / "test_stage2-64" / "config.pbtxt").read_text()
    assert text.count("dims: [1, 3, 64, 64]") == 2
    assert re.findall(r'model_name: "(.*)"', text) == [
        f"test_{name}-64" for name in ("vae_encoder", "unet_stage2", "vae_decoder")
    ]
    one, other = (tmp_path / "models" / f"test_vae_encoder{end}" / "1" / "weights" for end in ("", "-64"))
    assert one.samefile(other), "on the disk once"


def with_shared_weights(folder: Path) -> Path:
    """Every graph lists one more file, the same in each component."""
    document = json.loads((folder / "bundle.json").read_text())
    for name, component in document["components"].items():
        (folder / name / "weights").write_bytes(b"weights")
        listed = {"path": f"{name}/weights", "sha256": file_sha256(folder / name / "weights"), "bytes": 7}
        for variant in component["variants"]:
            variant["files"].append(listed)
    (folder / "bundle.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("machine", ["tensorrt"], indirect=True)
def test_engines_come_beside_the_graphs_by_compute_capability(
    bundle: Bundle, machine: Machine, tmp_path: Path
) -> None:
    folders = []
    for target, machine.cuda._target in (("sm89-fake-gpu-24gib", (8, 9)), ("sm120-fake-gpu-24gib", (12, 0))):
        folders.append(ensure_engines(Wanted(bundle, machine.library, target), tmp_path / target).path)
    names = write_repository(bundle, tmp_path / "models", folders)
    assert set(names) == ONNX_MODELS | {f"{name}_tensorrt" for name in ONNX_MODELS}
    model = tmp_path / "models" / "test_unet_stage1_tensorrt"
    text = (model / "config.pbtxt").read_text()
    assert 'platform: "tensorrt_plan"' in text
    config = read_config(model)
    assert dict(config.cc_model_filenames) == {"8.9": "sm89.plan", "12.0": "sm120.plan"}
    for file in config.cc_model_filenames.values():
        assert (model / "1" / file).read_bytes() == (folders[0] / "unet_stage1.plan").read_bytes()
    steps = read_config(tmp_path / "models" / "test_stage1_tensorrt").ensemble_scheduling.step
    assert [step.model_name for step in steps] == [
        "test_vae_encoder_tensorrt",
        "test_unet_stage1_tensorrt",
        "test_vae_decoder_tensorrt",
    ]


def test_engines_that_triton_cannot_take_are_refused_and_nothing_is_written(
    bundle: Bundle, machine: Machine, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    folder = ensure_engines(Wanted(bundle, machine.library, machine.target), tmp_path / "e").path
    models = tmp_path / "models"
    if machine.name == "tensorrt-rtx":
        with pytest.raises(UsageError, match="are of tensorrt-rtx; Triton loads those of TensorRT itself"):
            write_repository(bundle, models, [folder])
        return
    with pytest.raises(UsageError, match="are both for sm89"):
        write_repository(bundle, models, [folder, folder])
    other = open_bundle(make_bundle(tmp_path / "other", unet="identity", dtype="float16", tile=64))
    with pytest.raises(DeviceError, match=r"are not of this bundle's unet_stage1/model\.onnx"):
        write_repository(other, models, [folder])
    plan = folder / "vae_decoder.plan"
    plan.write_bytes(plan.read_bytes() + b"!")
    with pytest.raises(DeviceError, match="is not the engine that was built"):
        write_repository(bundle, models, [folder])
    assert not models.exists()
    models.mkdir()
    with pytest.raises(OutputError, match="already exists"):
        write_repository(bundle, models)
