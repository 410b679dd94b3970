"""Pixels pass, features become a residual: the codec by itself, in a base, and trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.train.recipes import optimization, stage1_config
from tudsr_runtime.errors import TrainingError
from tudsr_train.adapters import TARGETS, add_adapter, add_vae_encoder_adapter
from tudsr_train.base import train_base
from tudsr_train.bases.feature_autoencoder import FeatureAutoencoder, patch_basis
from tudsr_train.bases.nano import NanoBase, create_base
from tudsr_train.config import BaseConfig, Optimization
from tudsr_train.data.sources import Data
from tudsr_train.generator import Generator
from tudsr_train.run.loop import AVERAGE_PREFIX
from tudsr_train.stage1 import train_stage1


def _codec(margin: int = 8, patch: int = 4) -> FeatureAutoencoder:
    torch.manual_seed(0)
    widths = (8, 6, 4, 4)[: patch.bit_length()]
    return FeatureAutoencoder(patch, 5, widths, 10.0, latent_channels=3 * patch**2 + 5, margin=margin)


def _trained(codec: FeatureAutoencoder) -> FeatureAutoencoder:
    torch.nn.init.normal_(codec.conv_out.weight, std=0.3)
    return codec


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_without_features_nothing_is_lost_and_untrained_they_change_nothing(patch: int) -> None:
    codec, image = _codec(patch=patch), torch.rand(2, 3, 16, 24) * 2 - 1
    z = codec.encode(image).latent_dist.mode()
    assert z.shape == (2, 3 * patch**2 + 5, 32 // patch, 40 // patch)
    assert torch.allclose(codec.decode(z).sample, image, atol=1e-5)
    z[:, codec.pixel_channels :] = torch.randn_like(z[:, codec.pixel_channels :])
    assert torch.allclose(codec.decode(z).sample, image, atol=1e-5)


def test_the_residual_is_that_of_plain_convolutions() -> None:
    codec = _trained(_codec(margin=0))
    z = torch.randn(1, 53, 6, 7)
    pixels = F.pixel_shuffle(torch.einsum("oi,nihw->nohw", patch_basis(4)[1], z[:, :48]), 4)
    h = z[:, 48:] * 10
    up = torch.nn.Upsample(scale_factor=2, mode="bilinear")
    for number, layer in enumerate(codec.enlarging):
        h = F.leaky_relu(layer(up(h) if number else h), 0.2)
    h = F.leaky_relu(codec.looking(torch.cat([h, pixels], 1)), 0.2)
    assert torch.allclose(codec.decode(z).sample, pixels + codec.conv_out(h), atol=1e-5)


def test_features_that_are_the_same_in_every_cell_leave_no_grid() -> None:
    """Inside, where no border is seen; a decoder that writes patches would draw one."""
    codec = _trained(_codec(margin=0))
    z = torch.cat([torch.zeros(1, 48, 24, 24), torch.randn(1, 5, 1, 1).expand(1, 5, 24, 24)], 1)
    x = codec.decode(z).sample[..., 24:-24, 24:-24]
    assert (x.amax((2, 3)) - x.amin((2, 3))).max() <= 1e-5
    assert x.abs().max() > 1e-3


def test_a_flat_patch_has_its_brightness_and_nothing_else_and_gains_are_the_only_change() -> None:
    analysis, synthesis = (matrix.double() for matrix in patch_basis(4))
    assert torch.allclose(analysis @ synthesis, torch.eye(48, dtype=torch.float64), atol=1e-6)
    gray = analysis @ torch.ones(48, dtype=torch.float64)
    assert float(gray[0]) == pytest.approx(3**0.5)
    assert gray[1:].abs().max() <= 1e-5
    gains = analysis.norm(dim=1)
    gram = analysis @ analysis.T / (gains * gains[:, None])
    assert torch.allclose(gram, torch.eye(48, dtype=torch.float64), atol=1e-6)
    assert (float(gains.min()), float(gains.max())) == (pytest.approx(0.25), pytest.approx(20))


def test_the_signal_keeps_its_size_up_to_the_last_convolution() -> None:
    """Drawn as torch draws convolutions it lost nine tenths, and a base hardly learned."""
    codec = FeatureAutoencoder(widths=(48, 32, 16))
    seen: list[torch.Tensor] = []
    codec.conv_out.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        codec.decode(torch.cat([torch.zeros(1, 48, 24, 24), torch.randn(1, 48, 24, 24)], 1))
    assert 0.3 < float(seen[0].std()) < 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"margin": 6}, "no multiple"),
        ({"latent_channels": 48}, "have 96 channels, but latent_channels is 48"),
        ({"widths": (8, 8)}, "2 widths reach 2 x, the patch size is 4"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureAutoencoder(**changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tiny_model: NanoBase) -> NanoBase:
    return replace(tiny_model, feature_channels=16, decoder_widths=(8, 8, 8), beta=1e-6)


def _config(model: NanoBase, data: Data, **changes: object) -> BaseConfig:
    return BaseConfig(model=model, data=data, R=32, optimization=optimization(**changes))


def test_an_untrained_base_is_the_identity_to_a_ten_thousandth(model: NanoBase, tmp_path: Path) -> None:
    create_base(tmp_path, model, 0)
    G, x_L = Generator.load(tmp_path), torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert (G(x_L, 200) - x_L).abs().max() <= 2e-4
        features = G.denoise(G.encode(x_L), 200)[:, G.passed_channels :]
    assert G.passed_channels == 48
    assert (G.pixels_per_cell, G.latent_margin) == (4, 2)
    gain = G.vae.config.feature_gain
    assert 0.1 < float(features.std()) * gain < 10  # of the size that a decoder's weights are drawn for


def test_bfloat16_reaches_no_pixel(model: NanoBase, tmp_path: Path) -> None:
    """Under autocast the backbone is coarse; what passes it is not."""
    create_base(tmp_path, model, 0)
    G, x_L = Generator.load(tmp_path), torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        z_L = G.encode(x_L)
        z_H = G.denoise(z_L, 200)
        x = G.decode(z_H)
    assert z_H.dtype == torch.float32
    assert torch.allclose(z_H[:, :48], z_L[:, :48], rtol=2e-4, atol=1e-6)
    assert (x - x_L).abs().max() <= 3e-4


def test_training_moves_the_decoder_and_never_the_pixels_that_pass(
    model: NanoBase, pool: Data, tmp_path: Path
) -> None:
    train_base(_config(model, pool, steps=3), tmp_path / "base", "never")
    G = Generator.load(tmp_path / "base")
    for parameter in (G.unet.conv_out.weight, G.unet.conv_out.bias):
        assert parameter[:48].abs().max() == 0
        assert parameter[48:].abs().max() > 0
    assert G.vae.conv_out.weight.abs().max() > 0

    stage1 = stage1_config(tmp_path / "base", pool, steps=3)
    train_stage1(stage1, tmp_path / "stage1", "never")
    add_adapter(G, "x", 4, TARGETS)
    assert not any("conv_out" in name for name, _ in G.unet.named_parameters() if "lora_" in name)
    with pytest.raises(TrainingError, match="encoder has no weights"):
        add_vae_encoder_adapter(G, "x", 4)


@pytest.mark.usefixtures("one_thread")
def test_a_base_with_a_decoder_and_an_average_resumes_exactly(
    model: NanoBase, pool: Data, tmp_path: Path
) -> None:
    def train(name: str, steps: int) -> bytes:
        train_base(_config(model, pool, steps=steps, ema=0.9), tmp_path / name, "auto")
        return b"".join(
            (tmp_path / name / part / "diffusion_pytorch_model.safetensors").read_bytes()
            for part in ("unet", "vae")
        )

    train("interrupted", 2)
    assert train("interrupted", 4) == train("whole", 4)


def test_a_decoder_of_another_width_is_no_base_to_go_on_from(
    model: NanoBase, pool: Data, tmp_path: Path
) -> None:
    train_base(_config(model, pool, steps=1), tmp_path / "first", "never")
    other = replace(model, decoder_widths=(8, 8, 16))
    config = replace(_config(other, pool, steps=1), start=str(tmp_path / "first"))
    with pytest.raises(TrainingError, match="first is no base of this `model`"):
        train_base(config, tmp_path / "second", "never")


def test_an_average_is_in_no_optimizer_and_begins_where_a_run_without_one_ended() -> None:
    from tudsr_train.run.loop import Network

    o = Optimization(ema=0.5, optimizer="adamw")
    network = Network("generator", {"w": torch.nn.Parameter(torch.zeros(2))}, 0.1, o)
    assert {*network.state()} == {"w", AVERAGE_PREFIX + "w"}
    assert len(network.optimizer.param_groups[0]["params"]) == 1
    network.load_state({"w": torch.ones(2)})
    assert torch.equal(network.average["w"], torch.ones(2))
    with torch.no_grad():
        network.parameters["w"].fill_(3)
    network._follow(1000)
    assert torch.equal(network.average["w"], torch.full((2,), 2.0))
    with network.averaged():
        assert torch.equal(network.parameters["w"], torch.full((2,), 2.0))
    assert torch.equal(network.parameters["w"].detach(), torch.full((2,), 3.0))
