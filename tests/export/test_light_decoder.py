"""A light decoder in the bundle: exported beside the full one, gated by it, and run where it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cli
from benchmarks.full_size import unet_and_vae
from tests.export.conftest import TILE, Source, export, make_source, make_stable_diffusion
from tests.export.test_operations import counted_by_torch
from tudsr_export.gates import LIGHT_DISTS
from tudsr_export.light import LIGHT_DECODER, Light
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.engines.choose import Asked, choose
from tudsr_runtime.errors import BundleError, NotFiniteError, UsageError
from tudsr_runtime.golden_tile import run_golden
from tudsr_runtime.upscaler import Upscaler
from tudsr_train.bases.light_decoder import DecoderRecord, LightDecoder, light_decoder, save_light_decoder
from tudsr_train.generator import Generator


def make_light(G: Generator, folder: Path, noise: float = 0.0) -> Path:
    """The full decoder's own weights, which a width of 1 has room for, as the best that can be learned; its
    first convolution takes over `post_quant_conv`."""
    light = light_decoder(G, "half", 1.0)
    light.decoder.load_state_dict(G.vae.decoder.state_dict())
    post, first = G.vae.post_quant_conv, light.decoder.conv_in
    first.weight.data = torch.einsum("omhw,mi->oihw", first.weight, post.weight[..., 0, 0])
    first.weight.data /= G.scaling_factor
    # its bias reaches the border of the picture less; with none the two are equal
    assert post.bias.abs().max() == 0
    light.decoder.conv_out.bias.data += noise
    folder.mkdir()
    save_light_decoder(light, folder, DecoderRecord(G.base_sha256))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A base whose `post_quant_conv` has no bias."""

    def make(folder: Path) -> None:
        make_stable_diffusion(folder)
        G = Generator.load(folder)
        G.vae.post_quant_conv.bias.data.zero_()
        G.vae.save_pretrained(folder / "vae")

    return make_source(tmp_path_factory.mktemp("plain"), make)


@pytest.fixture(scope="module")
def lit(plain: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of half precision with a light decoder that differs a little from the full one."""
    folder = tmp_path_factory.mktemp("lit")
    light = make_light(Generator.load(plain.base), folder / "light", noise=0.02)
    export(plain.plan(folder / "bundle", "fp16", (1,), light_decoder=light, vgg16="random"))
    return folder / "bundle"


def test_the_bundle_lists_it_and_its_gates(lit: Path) -> None:
    manifest = open_bundle(lit).manifest
    assert {stage.light_decoder for stage in manifest.stages} == {LIGHT_DECODER}
    assert {stage.decoder for stage in manifest.stages} == {"vae_decoder"}
    found = manifest.numerics["light_vs_full"]
    # 0.02 of a span of 2 is 40 dB
    assert found["limit"] == 30
    assert found["stage1"]["value"] == pytest.approx(40, abs=1)
    assert manifest.numerics[LIGHT_DISTS.name]["stage1, dists[random]"]["value"] < 0.05
    assert any("light" in subject for subject in manifest.numerics["half_vs_float32"])
    assert LIGHT_DECODER in manifest.numerics["onnx_vs_torch"]


def test_it_runs_where_it_is_asked_for(lit: Path) -> None:
    image = np.random.default_rng(0).random((9, 7, 3), dtype=np.float32)

    def run(decoder: str, bundle: Path | Bundle = lit) -> Any:
        with Upscaler(
            bundle, "onnxruntime", "cpu", color="none", sanity=False, overlap=24, decoder=decoder
        ) as upscaler:
            found = upscaler.upscale(image, factors="4x-")
            assert upscaler.settings.get("decoder", "full") == decoder
        return found

    full, light = run("full"), run("light")
    inside = (full > 0.05) & (full < 0.95)
    assert inside.any()
    np.testing.assert_allclose((light - full)[inside], 0.01, atol=4e-3)
    opened = open_bundle(lit)
    np.testing.assert_array_equal(run("light", opened), light)
    with pytest.raises(UsageError, match="decoder must be full or light"):
        run("heavy")


def test_the_golden_tile_is_that_of_the_decoder_that_runs(lit: Path) -> None:
    opened = open_bundle(lit)
    for name in opened.decoders:
        view = opened.with_decoder(name)
        choice, _ = choose(view, Asked("onnxruntime", "cpu", "fp32"))
        assert all(figure.psnr_db > 60 for figure in run_golden(view, choice)), name
    stored = [
        opened.folder / file.path
        for file in (opened.manifest.golden.outputs[0], opened.manifest.golden.light[0])
    ]
    full, light = (np.fromfile(path, "<f4") for path in stored)
    assert np.median(light - full) == pytest.approx(0.02, abs=1e-4)


@torch.no_grad()
def test_each_stage_gets_what_the_light_decoder_made_of_the_one_before(plain: Source, tmp_path: Path) -> None:
    G = Generator.load(plain.base)
    folder = make_light(G, tmp_path / "light", noise=0.05)
    x = torch.rand(1, 3, TILE, TILE) * 2 - 1
    light = Light(folder, G, "fp32", None, x)
    light.through(G.encode)
    light.through(G.encode)
    expected = x
    for made in light.outputs:
        expected = (G.decode(G.encode(expected)) + 0.05).clamp(-1, 1)
        # the two add up the same products in another order
        torch.testing.assert_close(made, expected, atol=1e-3, rtol=0)
    assert len(light.outputs) == 2


def test_commands_show_it(lit: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cli.app(["bundle", "info", str(lit)], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "full and light" in shown
    assert "light decoder" in shown
    cli.app(
        ["bundle", "verify", str(lit), "--decoder", "light", "--backend", "onnxruntime"],
        standalone_mode=False,
    )
    assert "golden tile, stage1" in capsys.readouterr().out
    cli.app(["bundle", "triton", str(lit), str(tmp_path / "models")], standalone_mode=False)
    names = {path.name for path in (tmp_path / "models").iterdir()}
    assert {"tiny_stage1", "tiny_stage1_light", f"tiny_{LIGHT_DECODER}"} <= names
    config = (tmp_path / "models" / "tiny_stage1_light" / "config.pbtxt").read_text()
    assert f'"tiny_{LIGHT_DECODER}"' in config
    assert '"tiny_vae_decoder"' not in config


@pytest.mark.thorough
def test_a_bundle_without_one_says_so(bundles: Callable[[str, str], Path]) -> None:
    with pytest.raises(BundleError, match="has no light decoder"):
        Upscaler(bundles("stable_diffusion", "fp32"), "onnxruntime", "cpu", decoder="light")
    manifest = json.loads((bundles("stable_diffusion", "fp32") / "bundle.json").read_text())
    assert "light_decoder" not in manifest["stages"][0]
    assert "light" not in manifest["golden"]


def test_one_that_is_too_far_from_the_full_decoder_is_not_published(plain: Source, tmp_path: Path) -> None:
    G = Generator.load(plain.base)
    light = make_light(G, tmp_path / "light", noise=0.1)
    with pytest.raises(NotFiniteError, match=r"light_vs_full, stage1: 26\..* is below") as raised:
        export(plain.plan(tmp_path / "out", stages=(1,), light_decoder=light))
    assert "train it longer" in str(raised.value.hint)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("size", "channels"), [("half", (64, 128, 256, 256)), ("tiny", (64,) * 4)])
def test_two_fifths_of_a_tile_are_saved_at_full_size(size: str, channels: tuple[int, ...]) -> None:
    """Of Stable Diffusion 2.1's own networks, without weights, at 512 px."""
    with torch.device("meta"):
        unet, vae = unet_and_vae()
        light = LightDecoder(size, 4, channels)
        z, x, prompt = torch.zeros(1, 4, 64, 64), torch.zeros(1, 3, 512, 512), torch.zeros(1, 77, 1024)
        shared = counted_by_torch(lambda: vae.encode(x)) + counted_by_torch(lambda: unet(z, 0, prompt))
        full, ours = counted_by_torch(lambda: vae.decode(z)), counted_by_torch(lambda: light(z))
    assert 1 - (shared + ours) / (shared + full) >= 0.4


def test_the_bundle_counts_what_runs(lit: Path) -> None:
    opened = open_bundle(lit)
    light = opened.with_decoder("light")
    z = torch.zeros(1, 4, TILE // 2, TILE // 2)
    module = LightDecoder("half", 4, (16, 32), 1, 8)
    found = opened.variant(LIGHT_DECODER).macs
    assert found == pytest.approx(counted_by_torch(lambda: module(z)), rel=0.01)
    assert light.macs(0, TILE) - opened.macs(0, TILE) == found - opened.variant("vae_decoder").macs
