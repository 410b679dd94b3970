"""The bundle that travels with the package: what it is made from, what it computes, and that it helps."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from tudsr_runtime import Upscaler, open_bundle
from tudsr_runtime.files import file_sha256
from tudsr_runtime.manifest import read_plans
from tudsr_runtime.metrics.gmsd import gmsd_y
from tudsr_runtime.metrics.niqe import niqe
from tudsr_runtime.metrics.texture import texture_kept
from tudsr_runtime.tiling.plan import plan_upscale
from tudsr_train.data.dead_leaves import SyntheticImages

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models" / "nano"
Floats = NDArray[np.float32]


def test_it_is_small_whole_and_made_from_the_committed_models() -> None:
    bundle = open_bundle("nano")
    assert sum(file.bytes for file in bundle.manifest.files()) <= 24e6
    provenance = bundle.manifest.provenance
    for stage in ("stage1", "stage2"):
        weights = MODELS / stage / "adapter_model.safetensors"
        assert provenance["adapters"][stage]["sha256"] == file_sha256(weights)
    generator = pytest.importorskip(
        "tudsr_train.generator", reason="hashing the base needs the [train] extra"
    )
    assert provenance["base"]["sha256"] == generator.base_sha256(MODELS / "base")
    assert "What it draws is a guess" in " ".join((bundle.folder / "README.md").read_text().split())


def test_its_factors_are_those_that_were_measured() -> None:
    text = (ROOT / "benchmarks" / "results" / "plans_nano.json").read_text(encoding="utf-8")
    plans = open_bundle("nano").manifest.plans
    assert plans == read_plans(text, stages=2)
    assert {plan.scale for plan in plans} == {2, 3, 4, 8}


def test_its_manifest_and_card_are_as_the_export_writes_them() -> None:
    export = pytest.importorskip("tudsr_export.model_card", reason="the card's text needs the [export] extra")
    bundle = open_bundle("nano")
    assert bundle.manifest.to_json() == (bundle.folder / "bundle.json").read_text(encoding="utf-8")
    about = (ROOT / "docs" / "nano-card.md").read_text(encoding="utf-8")
    assert export.model_card(bundle.manifest, about) == (bundle.folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("side", "scale", "tiles"),
    [(256, 1.5, 4), (256, 2, 4), (128, 2, 1), (256, 3, 9), (256, 4, 9), (512, 4, 25), (256, 8, 34)],
)
def test_tiles_that_a_picture_takes(side: int, scale: float, tiles: int) -> None:
    with Upscaler("nano", backend="onnxruntime", device="cpu") as upscaler:
        assert upscaler.plan(side, side, scale).tiles == tiles
    assert tiles <= plan_upscale(side, side, scale).tiles


@pytest.mark.parametrize("scale", [1.5, 2, 3, 4])
def test_its_factors_are_no_worse_than_those_without_figures(scale: float) -> None:
    from benchmarks import quality

    clean = SyntheticImages(size=192, seed=7, num_textures=8)[0]
    side = round(192 / scale)
    low = quality.resize(clean, (side, side), Image.Resampling.BOX)
    without = plan_upscale(side, side, scale).notation
    with Upscaler("nano", device="cpu") as upscaler:
        assert upscaler.plan(side, side, scale).notation != without
        new = quality.measure(upscaler.upscale(low, size=(192, 192)), clean)
        old = quality.measure(upscaler.upscale(low, factors=without, size=(192, 192)), clean)
    assert new["psnr"] > old["psnr"] - 0.1
    assert new["ssim"] > old["ssim"] - 0.003


def test_its_half_graphs_draw_what_the_trained_model_draws() -> None:
    torch = pytest.importorskip("torch", reason="the reference needs the [train] extra")
    interpolate = importlib.import_module("torch.nn.functional").interpolate
    adapters = importlib.import_module("tudsr_train.adapters")
    G = importlib.import_module("tudsr_train.generator").Generator.load(MODELS / "base")
    records = [adapters.load_adapter(G, MODELS / name, name) for name in ("stage1", "stage2")]
    photo = _photo()[:128, :128]  # x2 then x2 keeps to one tile a stage, without padding in the second
    x = torch.from_numpy(photo).permute(2, 0, 1)[None] * 2 - 1
    with torch.no_grad():
        for record, name in zip(records, ("stage1", "stage2"), strict=True):
            x = interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            height, width = x.shape[-2:]
            padding = (0, min(512 - width, width - 1), 0, min(512 - height, height - 1))
            padded = torch.nn.functional.pad(x, padding, mode="reflect")
            rest = (0, 512 - padded.shape[-1], 0, 512 - padded.shape[-2])
            padded = torch.nn.functional.pad(padded, rest, mode="replicate")
            G.unet.set_adapter(name)
            x = G(padded, record.timestep)[..., :height, :width]
    expected = ((x[0].permute(1, 2, 0) + 1) / 2).numpy()
    with Upscaler("nano", device="cpu", precision="fp32", color="none") as upscaler:
        actual = upscaler.upscale(photo, factors="2x2")
    assert np.abs(actual - expected).max() <= 1 / 255
    # What this processor computes in by itself: bfloat16 has 8 bits for the whole range of the latent.
    with Upscaler("nano", device="cpu", color="none") as upscaler:
        chosen = upscaler.upscale(photo, factors="2x2")
    assert np.abs(chosen - expected).max() <= 8 / 255
    assert np.square(chosen - expected).mean() <= 10 ** (-48 / 10)


@pytest.mark.parametrize("scale", [4, 8])
def test_it_looks_more_like_a_photograph_than_bicubic_does(scale: int) -> None:
    from benchmarks import quality

    photo = _photo()
    low = quality.degrade(photo, scale, seed=0)
    with Upscaler("nano", device="cpu") as upscaler:
        ours = quality.to_8bit(upscaler.upscale(low, scale=scale))
    bicubic, high = (quality.to_8bit(one) for one in (quality.bicubic(low, scale), photo))
    assert niqe(np.asarray(ours)) < niqe(np.asarray(bicubic)) - 1
    misplaced = [gmsd_y(np.asarray(one), np.asarray(high)) for one in (ours, bicubic)]
    assert misplaced[0] < 1.05 * misplaced[1]  # what is drawn at x8 is a guess
    assert texture_kept(np.asarray(ours), np.asarray(high)) > 2 * texture_kept(
        np.asarray(bicubic), np.asarray(high)
    )


@pytest.mark.parametrize("scale", [2, 4])
def test_a_little_of_it_is_as_true_to_a_clean_photograph_as_lanczos(scale: int) -> None:
    from benchmarks import quality

    photo = _photo()
    side = photo.shape[0] // scale
    low = quality.resize(photo, (side, side), Image.Resampling.BOX)
    plain = quality.measure(quality.resize(low, (256, 256), Image.Resampling.LANCZOS), photo)
    with Upscaler("nano", device="cpu", strength=0.3) as upscaler:
        ours = quality.measure(upscaler.upscale(low, scale=scale), photo)
    assert ours["psnr"] > plain["psnr"] - 0.05
    assert ours["ssim"] > plain["ssim"] - 0.001


def test_it_draws_no_grid() -> None:
    """Neither of the cells' period of 4 px nor of 8 px, in a picture of smooth slopes and soft edges."""
    side = np.linspace(0, 1, 96, dtype=np.float32)
    slopes = np.stack(
        [side[:, None] * side, np.sqrt(side)[:, None] * side[::-1], side[None] ** 2 + 0 * side[:, None]]
    )
    with Upscaler("nano", device="cpu") as upscaler:
        large = upscaler.upscale(np.ascontiguousarray(slopes.transpose(1, 2, 0)), scale=4)
    for period in (4, 8):
        profile = np.abs(np.diff(large.mean(2), axis=1)).mean(0)[32:-32]
        phases = profile[: len(profile) // period * period].reshape(-1, period).mean(0)
        assert phases.max() <= 1.25 * phases.mean()


def test_a_constant_stays_itself() -> None:
    with Upscaler("nano", device="cpu") as upscaler:
        for level in (0.0, 0.5, 1.0):
            large = upscaler.upscale(np.full((70, 70, 3), level, np.float32), scale=8)
            assert np.abs(large - level).max() <= 2 / 255


def _photo() -> Floats:
    return np.asarray(Image.fromarray(data.astronaut()[:256, 128:384]), np.float32) / 255
