"""Pictures of several sizes through an exported bundle and the runtime, against plain diffusers and peft.

Nothing of ours is in the reference: not the merge, the folding, the graphs, the tiles or their blending.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.export import reference
from tests.export.conftest import (
    TILE,
    TIMESTEPS,
    Source,
    export,
    make_adapter,
    make_source,
    make_stable_diffusion,
)
from tests.export.test_bundle_equals_generator import picture, run_bundle, steps
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.upscaler import Upscaler

RANKS = (4, 32)
OVERLAP = 24


@pytest.fixture(scope="module")
def pairs(
    stable_diffusion: Source,
    bundles: Callable[[str, str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, tuple[Source, Path]]:
    """By rank: two random adapters of a base with a text encoder, and the float32 bundle of them."""
    folder = tmp_path_factory.mktemp("rank32")
    adapters = [make_adapter(stable_diffusion.base, folder / f"stage{n}", n, rank=32) for n in (1, 2)]
    large = Source(stable_diffusion.base, *adapters)
    export(large.plan(folder / "out"))
    return {4: (stable_diffusion, bundles("stable_diffusion", "fp32")), 32: (large, folder / "out")}


def photograph(height: int, width: int) -> np.ndarray:
    """Whole levels, as a file holds them: a slope, an edge and noise."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    base = 90 + 60 * np.sin(x / 5)[..., None] + 40 * (y > height / 2)[..., None] * [1, 0.5, -0.5]
    return np.clip(base + rng.normal(0, 8, (height, width, 3)), 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("rank", RANKS)
def test_one_tile_in_float(rank, pairs):
    source, folder = pairs[rank]
    expected = reference.restore(source.base, steps(source), picture())
    actual = run_bundle(open_bundle(folder), picture())
    assert float((actual - expected).abs().max()) <= 2e-4
    assert float((expected - picture()).abs().max()) > 0.1


@pytest.mark.parametrize(("rank", "size"), [(4, (5, 9)), (4, (8, 8)), (32, (13, 10))])
def test_pictures_of_any_size_after_rounding(rank, size, pairs):
    source, folder = pairs[rank]
    levels = photograph(*size)
    planes = torch.from_numpy(levels.astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)[None]
    stages = [(source.stage1, TIMESTEPS[1], 4), (source.stage2, TIMESTEPS[2], 2)]
    restored = reference.restore_picture(source.base, stages, planes, TILE, OVERLAP)
    expected = ((restored[0].permute(1, 2, 0).numpy() + 1) * 127.5).round()
    with Upscaler(folder, "onnxruntime", "cpu", overlap=OVERLAP, color="none", sanity=False) as upscaler:
        actual = upscaler.upscale(levels.astype(np.float32) / 255, scale=8)
    rounded = (actual * 255).round()
    assert rounded.shape == (size[0] * 8, size[1] * 8, 3)
    assert np.abs(rounded - expected).max() <= 1
    assert expected.std() > 5


def make_sd15(folder: Path) -> None:
    """Eight heads everywhere, 1x1 convolutions around attention; no scaling factor, a PNDM scheduler."""
    make_stable_diffusion(folder, attention_head_dim=8, use_linear_projection=False)
    vae = json.loads((folder / "vae" / "config.json").read_text())
    del vae["scaling_factor"]
    (folder / "vae" / "config.json").write_text(json.dumps(vae))
    scheduler = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))


def make_sd_turbo(folder: Path) -> None:
    """The architecture of 2.1 behind an Euler scheduler."""
    make_stable_diffusion(folder)
    scheduler = {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.24.0.dev0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "timestep_spacing": "trailing",
        "trained_betas": None,
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))


def make_v_prediction(folder: Path) -> None:
    """As the 768 px model of 2.1, which also computes attention in float32."""
    make_stable_diffusion(folder, "v_prediction", upcast_attention=True)


@pytest.mark.parametrize("make_base", [make_sd15, make_sd_turbo, make_v_prediction])
def test_other_bases(make_base, tmp_path):
    source = make_source(tmp_path, make_base)
    export(source.plan(tmp_path / "out", stages=(1,)))
    expected = reference.restore(source.base, steps(source)[:1], picture())
    actual = run_bundle(open_bundle(tmp_path / "out"), picture())
    assert float((actual - expected).abs().max()) <= 2e-4
    assert float((expected - picture()).abs().max()) > 0.1
