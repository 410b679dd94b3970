"""The golden tile: written by the export, checked by `tudsr bundle verify`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.export import reference
from tests.export.conftest import TILE
from tests.export.test_bundle_equals_generator import steps
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.bundle_command import bundle_info, bundle_verify
from tudsr_runtime.errors import BundleError, NotFiniteError
from tudsr_runtime.files import file_sha256


@pytest.fixture
def copied(bundles, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bundles("nano", "fp16"), folder)
    return folder


def test_it_is_the_centre_of_what_an_independent_pipeline_makes(sources, bundles):
    bundle = open_bundle(bundles("nano", "fp32"))
    golden = bundle.manifest.golden
    levels = np.asarray(Image.open(bundle.folder / golden.input.path), np.float32)
    x = torch.from_numpy(levels / 255 * 2 - 1).permute(2, 0, 1)[None]
    inside = slice(TILE * 3 // 8, TILE * 5 // 8)
    for number, file in enumerate(golden.outputs, 1):
        stored = np.fromfile(bundle.folder / file.path, "<f4").reshape(1, 3, TILE // 4, TILE // 4)
        expected = reference.restore(sources["nano"].base, steps(sources["nano"])[:number], x)
        np.testing.assert_allclose(stored, expected[..., inside, inside], rtol=0, atol=2e-4)
    assert levels.std() > 5, "a picture, not a plain"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_verify_runs_it(precision, bundles, capsys):
    bundle_verify(str(bundles("nano", precision)), "onnxruntime", "cpu")
    said = capsys.readouterr()
    assert "all as the manifest says" in said.out
    for stage in ("stage1", "stage2"):
        assert f"golden tile, {stage}: " in said.out
    assert "dB (at least 40)" in said.out
    assert "onnxruntime on cpu" in said.err


def relist(folder: Path, path: str) -> None:
    """Make the manifest agree with a changed file: what is tested is not its hash."""
    file = folder / path
    document = json.loads((folder / "bundle.json").read_text())

    def walk(value):
        if isinstance(value, dict):
            if value.get("path") == path:
                value |= {"sha256": file_sha256(file), "bytes": file.stat().st_size}
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    (folder / "bundle.json").write_text(json.dumps(document))


def test_verify_sees_a_back_end_that_computes_something_else(copied, capsys):
    """As seen from the back end: what is stored is off by a twentieth of the range."""
    path = copied / "golden" / "stage2.f32"
    (np.fromfile(path, "<f4") + np.float32(0.1)).tofile(path)
    relist(copied, "golden/stage2.f32")
    with pytest.raises(
        NotFiniteError, match=r"stage2 on the golden tile is at 26\.\d dB, below 40 dB"
    ) as caught:
        bundle_verify(str(copied), "onnxruntime", "cpu")
    assert caught.value.exit_code == 9
    assert "golden tile, stage1: " in capsys.readouterr().out


def test_verify_sees_a_damaged_file(copied):
    file = copied / "golden" / "stage1.f32"
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(BundleError, match="damaged"):
        bundle_verify(str(copied), "onnxruntime", "cpu")


@pytest.mark.parametrize(
    ("path", "message"), [("golden/stage1.f32", "holds 4 values"), ("golden/input.png", "8 x 8 px")]
)
def test_verify_sees_a_tile_of_another_size(path, message, copied):
    if path.endswith(".png"):
        Image.new("RGB", (8, 8)).save(copied / path)
    else:
        (copied / path).write_bytes(bytes(16))
    relist(copied, path)
    with pytest.raises(BundleError, match=message):
        bundle_verify(str(copied), "onnxruntime", "cpu")


def test_verify_says_when_there_is_none(copied, capsys):
    document = json.loads((copied / "bundle.json").read_text())
    document["golden"] = None
    (copied / "bundle.json").write_text(json.dumps(document))
    shutil.rmtree(copied / "golden")
    bundle_verify(str(copied))
    said = capsys.readouterr()
    assert "all as the manifest says" in said.out
    assert "no golden tile" in said.err


def test_info_shows_parents_and_gates(bundles, capsys):
    bundle_info(str(bundles("nano", "fp16")), as_json=False)
    said = capsys.readouterr().out
    for words in (
        "tudsr adapter, rank 4",
        "half_vs_float32:",
        "dB (at least 45",
        "tensorrt_rtx:     not run",
    ):
        assert words in said
