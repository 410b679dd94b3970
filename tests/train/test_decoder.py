"""A light decoder is distilled from the base's own: it learns, leaves the base alone, and resumes exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train.recipes import decoder_config
from tudsr_runtime.errors import BundleError, OutputError, TrainingError
from tudsr_train.bases.light_decoder import (
    DECODER_RECORD_FILE,
    LightDecoder,
    light_decoder,
    load_light_decoder,
)
from tudsr_train.data.sources import Data
from tudsr_train.decoder import LightDecoding, encoded_and_decoded, train_decoder
from tudsr_train.generator import Generator
from tudsr_train.losses.dists import DistsConfig
from tudsr_train.losses.reconstruction import LossWeights

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def _figures(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize("size", ["half", "tiny"])
def test_it_learns_and_the_base_stays(
    size: str, stable_diffusion_like_base: Path, pool: Data, tmp_path: Path
) -> None:
    before = Generator.load(stable_diffusion_like_base).base_sha256
    config = decoder_config(stable_diffusion_like_base, pool, size, steps=12, lr=5e-3)
    config = replace(config, validation=replace(config.validation, every=6))
    train_decoder(config, tmp_path / "light", "never")

    losses = _figures(tmp_path / "light.run", "mae")
    assert sum(losses[-4:]) < sum(losses[:4])
    shown = _figures(tmp_path / "light.run", "validation/PSNR light")
    assert shown[-1] > shown[0]
    G = Generator.load(stable_diffusion_like_base)
    assert G.base_sha256 == before
    light = load_light_decoder(tmp_path / "light", G)
    assert light(torch.randn(1, 4, 8, 8)).shape == (1, 3, 16, 16)
    assert not any(p.requires_grad for p in light.parameters())


def test_what_is_learned_is_the_full_decoder(stable_diffusion_like_base: Path) -> None:
    """z is what Eq. (2) hands over, and D(z / s) what the generator makes of it."""
    G = Generator.load(stable_diffusion_like_base)
    gan = LightDecoding(decoder_config(stable_diffusion_like_base, Data(count=1, size=64)), Path("light")).gan
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    z, full = encoded_and_decoded(gan, x)
    torch.testing.assert_close(z, G.encode(x))
    torch.testing.assert_close(full, G.decode(z).clamp(-1, 1))
    assert not z.requires_grad
    assert not full.requires_grad


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    stable_diffusion_like_base: Path, pool: Data, tmp_path: Path
) -> None:
    config = decoder_config(stable_diffusion_like_base, pool, steps=4, save_every=2, ema=0.9)
    train_decoder(config, tmp_path / "whole", "never")
    half = replace(config, optimization=replace(config.optimization, steps=2))
    train_decoder(half, tmp_path / "parts", "never")
    train_decoder(config, tmp_path / "parts", "auto")
    whole, parts = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_ea_dists_is_learned_from_too(stable_diffusion_like_base: Path, pool: Data, tmp_path: Path) -> None:
    config = replace(
        decoder_config(stable_diffusion_like_base, pool, steps=1, gradient_checkpointing=True),
        loss=LossWeights(ea_dists=1.0, mae=1.0),
        dists=DistsConfig("random", "random"),
    )
    found = LightDecoding(config, tmp_path / "light").check()
    assert any("ea_dists" in line and "mae" in line for line in found)
    assert not (tmp_path / "light").exists()


def test_half_has_half_the_channels_and_tiny_those_of_taesd(stable_diffusion_like_base: Path) -> None:
    G = Generator.load(stable_diffusion_like_base)
    half, tiny = light_decoder(G, "half"), light_decoder(G, "tiny")
    assert tuple(half.config.block_out_channels) == tuple(n // 2 for n in G.vae.config.block_out_channels)
    assert set(tiny.config.block_out_channels) == {64}
    z = torch.randn(2, 4, 8, 8)
    assert half(z).shape == tiny(z).shape == G.decode(z).shape
    # at the base's own width it is the base's own decoder, to the name
    full = light_decoder(G, "half", 1.0).decoder
    assert {n: p.shape for n, p in full.named_parameters()} == {
        n: p.shape for n, p in G.vae.decoder.named_parameters()
    }


def test_the_tiny_one_of_stable_diffusion_is_taesd() -> None:
    """The same network as diffusers' `AutoencoderTiny` has, by number and shape of its weights."""
    from diffusers import AutoencoderTiny

    with torch.device("meta"):
        ours = LightDecoder("tiny", 4, (64, 64, 64, 64)).decoder
        theirs = AutoencoderTiny().decoder
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


def test_a_base_without_a_heavy_decoder_and_settings_that_cannot_be_are_refused(
    tiny_base: Path, stable_diffusion_like_base: Path, pool: Data, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="decoder is light already"):
        LightDecoding(decoder_config(tiny_base, pool), tmp_path / "light")
    for wrong, message in (
        ({"degraded_prob": 2.0}, "share from 0 to 1"),
        ({"posterior": "mean"}, "sample and mode"),
        ({"loss": LossWeights(gan=1.0)}, "without an adversary"),
    ):
        with pytest.raises(TrainingError, match=message):
            replace(decoder_config(stable_diffusion_like_base, pool), **wrong)
    with pytest.raises(TrainingError, match="half and tiny"):
        decoder_config(stable_diffusion_like_base, pool, "huge")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    with pytest.raises(OutputError):
        LightDecoding(decoder_config(stable_diffusion_like_base, pool), tmp_path / "vae")


def test_one_that_is_foreign_or_damaged_is_refused(
    stable_diffusion_like_base: Path, pool: Data, tmp_path: Path
) -> None:
    G, light = Generator.load(stable_diffusion_like_base), tmp_path / "light"
    with pytest.raises(BundleError, match="no light decoder here"):
        load_light_decoder(light, G)
    train_decoder(decoder_config(stable_diffusion_like_base, pool, steps=1), light, "never")
    G.base_sha256 = "0" * 64
    with pytest.raises(BundleError, match="distilled from base"):
        load_light_decoder(light, G)
    G = Generator.load(stable_diffusion_like_base)
    whole = load_file(light / WEIGHTS)
    save_file(dict(list(whole.items())[1:]), light / WEIGHTS, {"format": "pt"})
    with pytest.raises(BundleError, match="cannot be read"):
        load_light_decoder(light, G)
    (light / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(BundleError, match="cannot be read"):
        load_light_decoder(light, G)
    (light / DECODER_RECORD_FILE).write_text('{"base": 3}')
    with pytest.raises(BundleError, match="cannot be read"):
        load_light_decoder(light, G)
