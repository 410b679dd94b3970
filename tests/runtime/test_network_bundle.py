"""A bundle of one graph through everything that takes a bundle."""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runtime.conftest import list_golden
from tests.tensorrt.test_triton import run_model
from tudsr_runtime import Upscaler
from tudsr_runtime.bench.latency import measure_latency
from tudsr_runtime.bench.tiles import measure_tiles
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.engines.tensorrt.command import engines_of
from tudsr_runtime.engines.tensorrt.triton import write_repository
from tudsr_runtime.errors import BundleError, UsageError
from tudsr_runtime.golden_tile import run_golden
from tudsr_runtime.manifest import Manifest

LATENT = {"channels": 4, "pixels_per_cell": 8, "scaling_factor": 1, "margin": 0}


@pytest.fixture
def upscaler(network_bundle: Path) -> Upscaler:
    pytest.importorskip("onnxruntime", reason="runs a graph")
    return Upscaler(network_bundle, backend="onnxruntime", overlap=24, color="none")


def levels(height: int, width: int, channels: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_pixel_becomes_what_the_network_makes_of_it(upscaler: Upscaler, channels: int) -> None:
    x = levels(23, 50, channels)
    if channels in (2, 4):
        x[..., -1] = 255
    expected = x.repeat(4, axis=0).repeat(4, axis=1)
    result = upscaler.upscale(x)
    assert result.shape == expected.shape
    assert np.array_equal(result, expected)


def test_any_scale_is_reached_by_one_pass_or_two_and_a_resize(upscaler: Upscaler) -> None:
    x = levels(20, 30, 3)
    assert upscaler.upscale(x, 8).shape == (160, 240, 3)
    assert upscaler.upscale(x, size=(100, 66)).shape == (66, 100, 3)
    assert upscaler.upscale(x, factors="4x4").shape == (320, 480, 3)
    assert upscaler.plan(30, 20, 8).notation == "4x4"
    with pytest.raises(UsageError, match="enlarges x4, and not x2"):
        upscaler.upscale(x, factors="4x2")
    assert {stage.columns.tile for stage in upscaler.plan(60, 60).stages} <= {64, 128}


def test_edges_that_meet_show_no_seam(upscaler: Upscaler, network_bundle: Path) -> None:
    with Upscaler(network_bundle, backend="onnxruntime", overlap=24, color="none", wrap="x") as wrapping:
        x = levels(20, 40, 3)
        assert np.array_equal(wrapping.upscale(x), upscaler.upscale(x))


def test_the_command_takes_it(tudsr: Callable[..., Any], network_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(levels(20, 30, 3)).save(tmp_path / "a.png")
    options = ("--bundle", network_bundle, "--overlap", 24, "--backend", "onnxruntime")
    dry = tudsr("upscale", tmp_path / "a.png", "--dry-run", "--scale", 8, *options)
    assert dry.code == 0
    assert "4x4 = x16, the network enlarges x4 each time, then reduced to x8" in dry.out + dry.err
    done = tudsr("upscale", tmp_path / "a.png", "-o", tmp_path / "b.png", *options)
    assert done.code == 0, done.err
    with Image.open(tmp_path / "b.png") as result:
        assert result.size == (120, 80)
    info = tudsr("bundle", "info", network_bundle)
    assert "Repeater, sha256 000000000000" in info.out
    assert "x4, network alone, no diffusion" in info.out


def test_benchmarks_time_the_network(upscaler: Upscaler) -> None:
    found = measure_latency(upscaler, 20, 20, 4.0, warmup=0, repeats=1)
    assert {"resample", "blend", "network"} <= found.parts.keys()
    assert [(one.stage, one.tile) for one in measure_tiles(upscaler, 0, 1)] == [
        (0, 128), (0, 64), (1, 128), (1, 64),
    ]  # fmt: skip


def test_the_golden_tile_is_what_the_network_reads(
    upscaler: Upscaler, network_bundle: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(network_bundle, tmp_path / "b")
    (folder / "golden").mkdir()
    x = levels(16, 16, 3)
    Image.fromarray(x).save(folder / "golden" / "input.png")
    large = x.repeat(4, axis=0).repeat(4, axis=1).astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    second = large[..., 24:40, 24:40].repeat(4, axis=2).repeat(4, axis=3)
    for number, made in ((1, large), (2, second)):
        made[..., 24:40, 24:40].astype("<f4").tofile(folder / "golden" / f"stage{number}.f32")
    list_golden(folder)
    figures = run_golden(open_bundle(folder), upscaler.choice)
    assert [one.stage for one in figures] == ["stage1", "stage2"]
    assert min(one.psnr_db for one in figures) > 100


def test_a_pass_is_an_ensemble_of_one_model_for_triton(network_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(network_bundle)
    names = write_repository(bundle, tmp_path / "models")
    assert {"net_network", "net_stage1", "net_stage2"} <= set(names)
    x = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    found = run_model(tmp_path / "models", "net_stage1", {"x_L": x})
    assert np.array_equal(found["x_H"], x.repeat(4, axis=2).repeat(4, axis=3))


def test_engines_are_built_of_the_one_graph_in_every_size(network_bundle: Path) -> None:
    bundle = open_bundle(network_bundle)
    assert engines_of(bundle, [(0, 64), (1, 64), (1, 128)]) == {"network", "network-128"}
    assert bundle.macs(0, 64) == 64**2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "networks need schema_version 2"),
        ({"latent": LATENT}, "latent must be null"),
        ({"tile": 66}, r"tile 64 is not|network: tile is 128"),
        ({"stages": [{"name": "stage1", "factor": 2, "network": "network"}]}, "x has shape"),
        ({"stages": [{"name": "stage1", "factor": 3, "network": "network"}]}, "multiple of 6"),
        ({"stages": [{"name": "stage1", "factor": 4, "network": "other"}]}, "names the component 'other'"),
        ({"stages": [{"name": "stage1", "factor": 4, "network": "network", "unet": "x"}]}, "unknown key"),
        ({"stages": [{"name": "stage1", "factor": 40, "network": "network"}]}, "factor must be 1 to 16"),
        ({"stages": [{"name": "stage1", "network": "network"}]}, "missing key"),
    ],
)
def test_a_misfit_manifest_is_refused(network_bundle: Path, change: dict[str, Any], message: str) -> None:
    document = json.loads((network_bundle / "bundle.json").read_text()) | change
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(document))


def test_plans_have_the_networks_factors(network_bundle: Path) -> None:
    plan = {"scale": 8.0, "factors": "4x2", "psnr_db": 25.0, "ssim": 0.7, "texture": 0.5}
    document = json.loads((network_bundle / "bundle.json").read_text()) | {"plans": [plan]}
    with pytest.raises(BundleError, match="plan 4x2 has other factors than the networks'"):
        Manifest.from_json(json.dumps(document))


def with_overlap(network_bundle: Path, folder: Path, overlap: int) -> Path:
    shutil.copytree(network_bundle, folder)
    document = json.loads((folder / "bundle.json").read_text()) | {"overlap": overlap}
    (folder / "bundle.json").write_text(json.dumps(document))
    return folder


def test_an_overlap_may_be_more_than_the_own_tiles_have_room_for(
    network_bundle: Path, tmp_path: Path
) -> None:
    """The greatest tiles have it; the others serve where one holds the whole picture."""
    pytest.importorskip("onnxruntime", reason="runs a graph")
    folder = with_overlap(network_bundle, tmp_path / "b", 60)
    with Upscaler(folder, backend="onnxruntime", color="none") as upscaler:
        assert upscaler.settings["overlap"] == 60
        wide = upscaler.plan(60, 16).stages[0].columns
        assert wide.tile == 128
        assert min(a + wide.tile - b for a, b in itertools.pairwise(wide.starts)) >= 60
        assert upscaler.plan(16, 16).stages[0].columns.tile == 64
        x = levels(16, 60, 3)
        assert np.array_equal(upscaler.upscale(x), x.repeat(4, axis=0).repeat(4, axis=1))
    with Upscaler(folder, backend="onnxruntime", color="none", tile=64) as small:
        assert small.settings["overlap"] == 32
    with pytest.raises(BundleError, match="overlap must be 17 to 64 px, not 65"):
        open_bundle(with_overlap(network_bundle, tmp_path / "c", 65))


def test_a_bundle_is_a_rival_in_the_comparison(upscaler: Upscaler) -> None:
    pytest.importorskip("skimage", reason="the comparison takes its photographs")
    rivals = pytest.importorskip("benchmarks.rivals", reason="a checkout has it")
    low = levels(20, 20, 3).astype(np.float32) / 255
    methods = rivals.methods(4, upscaler, None, {"other": upscaler})
    assert np.abs(methods["other"](low) - low.repeat(4, axis=0).repeat(4, axis=1)).max() < 1e-6
    assert rivals.methods(8, upscaler, None, {"other": upscaler})["other"](low).shape == (160, 160, 3)


@pytest.mark.parametrize("text", ["other", "=x", "other=", "nano=x", "nano M4=x", "Real-ESRGAN x4plus=x"])
def test_a_rivals_name_is_its_own(text: str) -> None:
    pytest.importorskip("skimage", reason="the comparison takes its photographs")
    rivals = pytest.importorskip("benchmarks.rivals", reason="a checkout has it")
    with pytest.raises(argparse.ArgumentTypeError):
        rivals.bundle_rival(text)
    assert rivals.bundle_rival("x4plus=models/x4=plus") == ("x4plus", "models/x4=plus")
    assert rivals.short("x4plus=/a/b/x4plus") == "x4plus=x4plus"
