"""What is folded computes the same, for any schedule."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tudsr_export.float32_islands import run_scanned
from tudsr_export.fold import bake_one_step, bake_timestep, scaled_post_quant_conv, scaled_quant_conv
from tudsr_export.graphs import CodecDecoder, CodecEncoder, UnetStage, vae_graphs
from tudsr_runtime.errors import BundleError
from tudsr_train.bases.patch_autoencoder import PatchAutoencoder
from tudsr_train.generator import Generator, one_step


class LastConvolution(nn.Module):
    """The part of a UNet that Eq. (2) is folded into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_out = nn.Conv2d(3, 3, 1, dtype=torch.float64)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.conv_out(z)


@settings(deadline=None)
@given(st.floats(0.01, 1.0), st.sampled_from(("epsilon", "v_prediction")), st.integers(0, 100))
@torch.no_grad()
def test_folded_formula_is_eq_2(alpha_t, prediction_type, seed):
    torch.manual_seed(seed)
    unet, z = LastConvolution(), torch.randn(1, 3, 4, 4, dtype=torch.float64)
    expected = one_step(z, unet(z), torch.tensor(alpha_t, dtype=torch.float64), prediction_type)
    c = bake_one_step(unet, alpha_t, prediction_type)
    torch.testing.assert_close(c * z + unet(z), expected)


@pytest.mark.parametrize("kind", ["nano", "stable_diffusion"])
@pytest.mark.parametrize("timestep", [0, 50, 200, 999])
@torch.no_grad()
def test_stage_equals_denoise_at_any_timestep(kind, timestep, sources):
    generator = Generator.load(sources[kind].base)
    z_L = torch.randn(1, generator.unet.config.in_channels, 16, 16)
    expected = generator.denoise(z_L, timestep)
    stage = UnetStage(generator, timestep).eval()
    torch.testing.assert_close(stage(z_L), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_autoencoder_graphs_leave_the_base_alone(stable_diffusion):
    vae = Generator.load(stable_diffusion.base).vae
    before = copy.deepcopy(vae.state_dict())
    encoder, decoder = vae_graphs(vae)
    encoder.half()
    decoder.half()
    after = vae.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@torch.no_grad()
def test_latent_scale_is_folded_exactly_for_a_power_of_two(stable_diffusion):
    vae = Generator.load(stable_diffusion.base).vae
    vae.register_to_config(scaling_factor=0.25)
    moments, z = torch.randn(1, 8, 4, 4), torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(scaled_quant_conv(vae)(moments), vae.quant_conv(moments)[:, :4] * 0.25)
    torch.testing.assert_close(scaled_post_quant_conv(vae)(z), vae.post_quant_conv(z / 0.25))


@pytest.mark.parametrize("scaling_factor", [1.0, 0.5])
def test_patch_graphs_undo_each_other(scaling_factor):
    vae = PatchAutoencoder(patch_size=2, scaling_factor=scaling_factor, latent_channels=12)
    image = torch.rand(1, 3, 8, 8)
    z = CodecEncoder(vae)(image)
    torch.testing.assert_close(z, vae.encode(image).latent_dist.mode() * scaling_factor)
    torch.testing.assert_close(CodecDecoder(vae)(z), image)


@pytest.mark.parametrize(
    ("key", "value"), [("resnet_time_scale_shift", "scale_shift"), ("class_embed_type", "timestep")]
)
def test_a_unet_with_other_conditioning_is_refused(key, value, nano):
    unet = Generator.load(nano.base).unet
    unet.register_to_config(**{key: value})
    with pytest.raises(BundleError, match=f"{key} = '{value}'"):
        bake_timestep(unet, 10)


def test_scan_sees_values_inside_and_attention_logits():
    class Peak(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * -300) / 300

    class Attend(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    (output,), peaks = run_scanned(Peak(), [torch.ones(2)])
    assert (output.abs().max(), peaks.largest) == (1, 300)
    _, peaks = run_scanned(Attend(), [torch.full((1, 1, 2, 4), 10.0)])
    assert peaks.logits == {"": pytest.approx(200)}
