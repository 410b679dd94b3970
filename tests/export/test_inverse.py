"""InvSR's noise predictor as it is saved, against its own arithmetic by diffusers' own scheduler."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from tests.export.conftest import make_stable_diffusion
from tests.export.test_layouts import Trap
from tudsr_export import command
from tudsr_export.options import ExportOptions
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.errors import BundleError, NotFiniteError, UsageError
from tudsr_runtime.upscaler import Upscaler

TILE, SIDE = 64, 16
WIDTHS, LAYERS, TEMB = (64, 64), 1, 32
WORDS = "a b"


class Predictor(nn.Module):
    """The encoder of the noise predictor, put together as InvSR does, with few channels."""

    def __init__(self) -> None:
        super().__init__()
        sines = max(128, WIDTHS[0])
        self.time_proj = Timesteps(sines, True, 0)
        self.time_embedding = TimestepEmbedding(sines, TEMB)
        self.conv_in = nn.Conv2d(3, WIDTHS[0], 3, 1, 1)
        self.down_blocks = nn.ModuleList(
            get_down_block(
                "AttnDownBlock2D", num_layers=LAYERS, in_channels=64, out_channels=64, temb_channels=TEMB,
                add_downsample=not last, resnet_eps=1e-6, resnet_act_fn="silu", resnet_groups=32,
                attention_head_dim=64, downsample_padding=0, resnet_time_scale_shift="default",
            )
            for last in (False, True)
        )  # fmt: skip
        self.mid_block = UNetMidBlock2D(
            in_channels=64, temb_channels=TEMB, resnet_eps=1e-6, resnet_act_fn="silu", attention_head_dim=64,
            resnet_groups=32, output_scale_factor=1, add_attention=True, resnet_time_scale_shift="default",
        )  # fmt: skip
        self.conv_norm_out = nn.GroupNorm(32, 64, eps=1e-6)
        self.conv_out = nn.Conv2d(64, 8, 3, padding=1)

    def forward(self, x: Tensor, t: int) -> Tensor:
        emb = self.time_embedding(self.time_proj(torch.tensor([t])))
        x = self.conv_in(x)
        for block in self.down_blocks:
            x, _ = block(x, emb)
        return self.conv_out(nn.functional.silu(self.conv_norm_out(self.mid_block(x, emb))))


@dataclass(frozen=True)
class Peer:
    base: Path
    checkpoint: Path
    predictor: Predictor

    @torch.no_grad()
    def restore(self, image: Tensor, t: int = 200) -> Tensor:
        """A picture (1, 3, h, w) in [0, 1] four times larger, as InvSR's pipeline does."""
        vae = AutoencoderKL.from_pretrained(self.base / "vae").eval()
        unet = UNet2DConditionModel.from_pretrained(self.base / "unet").eval()
        scheduler = EulerDiscreteScheduler.from_pretrained(self.base / "scheduler")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, where diffusers calls it
            scheduler.set_timesteps(timesteps=[t])
        size = (4 * image.shape[2], 4 * image.shape[3])
        up = nn.functional.interpolate(image, size=size, mode="bicubic") * 2 - 1
        z_0 = vae.encode(up).latent_dist.mode() * vae.config.scaling_factor
        mean, logvar = self.predictor(image * 2 - 1, t).chunk(2, 1)
        e = torch.randn(1, 4, 128, 128, generator=torch.Generator().manual_seed(12345))
        noise = mean + torch.exp(logvar / 2) * e[..., : z_0.shape[2], : z_0.shape[3]]
        z = scheduler.add_noise(z_0, noise, scheduler.timesteps)
        tokenizer = CLIPTokenizer.from_pretrained(self.base / "tokenizer")
        room = CLIPTextModel.from_pretrained(self.base / "text_encoder")
        tokens = tokenizer(WORDS, padding="max_length", max_length=12, return_tensors="pt")
        read = scheduler.scale_model_input(z, scheduler.timesteps[0])
        predicted = unet(read, t, encoder_hidden_states=room(tokens.input_ids)[0]).sample
        z = scheduler.step(predicted, scheduler.timesteps[0], z).prev_sample
        return (vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    folder = tmp_path_factory.mktemp("invsr")
    make_stable_diffusion(folder / "base")
    torch.manual_seed(9)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, scaling_factor=0.18215,
    )  # fmt: skip
    vae.quant_conv.weight.data *= 30
    vae.save_pretrained(folder / "base" / "vae")
    predictor = Predictor().eval()
    saved = {f"encoder.{name}": value for name, value in predictor.state_dict().items()}
    torch.save(saved, folder / "noise_predictor.pth")
    return Peer(folder / "base", folder / "noise_predictor.pth", predictor)


def export(peer: Peer, output: Path, checkpoint: Path | None = None, **options: Any) -> Bundle:
    settings = {"base": peer.base, "prompt": WORDS, "precision": "fp32", "licence": "other"} | options
    command.run(ExportOptions(output, from_invsr=checkpoint or peer.checkpoint, **settings), tile=TILE)
    return open_bundle(output)


def test_the_bundle_restores_as_invsr_does(peer: Peer, tmp_path: Path) -> None:
    bundle = export(peer, tmp_path / "out")
    x = np.random.default_rng(3).random((SIDE, SIDE, 3), np.float32)
    image = torch.from_numpy(x).permute(2, 0, 1)[None]
    expected = peer.restore(image)[0].permute(1, 2, 0).numpy()
    with Upscaler(bundle, backend="onnxruntime", color="none", sanity=False) as upscaler:
        result = upscaler.upscale(x)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4)
    other = peer.restore(image, 700)[0].permute(1, 2, 0).numpy()
    assert np.abs(other - expected).max() > 0.01
    manifest = bundle.manifest
    assert (manifest.own_factors, manifest.latent, manifest.tile) == ((4, 4), None, TILE)
    made = manifest.provenance
    assert made["network"]["architecture"] == "InvSR (timestep 200, on base)"
    assert made["base"]["id"] == "base"
    assert "read by diffusers" in (bundle.folder / "README.md").read_text()


def changed(peer: Peer, tmp_path: Path, change: Any) -> Path:
    saved = torch.load(peer.checkpoint, weights_only=True)
    torch.save(change(saved, tmp_path) or saved, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


def without(name: str) -> Any:
    return lambda saved, _: saved.pop(name) is None


WRONG = {
    "code": (lambda _, folder: {"a": Trap(folder / "it-ran")}, "refused, for it holds more than weights"),
    "a list": (lambda *_: [1, 2], "no noise predictor of InvSR's, but a list"),
    "another network": (lambda *_: {"fc.weight": torch.zeros(3, 3)}, "it has no down_blocks"),
    "too few": (lambda saved, _: {k: v for k, v in saved.items() if "mid_block" not in k}, "no noise pred"),
    "three channels": (
        lambda saved, _: saved | {
            "encoder.conv_out.weight": torch.zeros(6, 64, 3, 3), "encoder.conv_out.bias": torch.zeros(6)
        },
        "latents of 3 channels and cells of 8 px",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_noise_predictor_is_refused(name: str, peer: Peer, tmp_path: Path) -> None:
    change, message = WRONG[name]
    with pytest.raises(BundleError, match=message) as caught:
        export(peer, tmp_path / "out", changed(peer, tmp_path, change))
    assert caught.value.exit_code == 5
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "it-ran").exists()


def test_weights_that_are_not_finite_are_refused(peer: Peer, tmp_path: Path) -> None:
    def spoil(saved: dict[str, Tensor], _: Path) -> None:
        saved["encoder.conv_in.bias"][0] = float("nan")

    with pytest.raises(NotFiniteError, match=r"conv_in.bias: 1 of 64 values"):
        export(peer, tmp_path / "out", changed(peer, tmp_path, spoil))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": None}, "--from-invsr needs the base beside it"),
        ({"stage1": Path("x")}, "--stage1 has no meaning with --from-invsr"),
        ({"from_spandrel": Path("x")}, "--from-invsr has no meaning|--base has no meaning"),
        ({"timesteps": "200,50"}, "expected 1 number"),
        ({"light_decoder": Path("x")}, "--light-decoder has no meaning"),
    ],
)
def test_options_that_do_not_go_together(
    options: dict[str, Any], message: str, peer: Peer, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        export(peer, tmp_path / "out", **options)


def test_a_base_of_another_kind_is_refused(peer: Peer, tmp_path: Path) -> None:
    make_stable_diffusion(tmp_path / "other", "v_prediction")
    with pytest.raises(BundleError, match=r"needs a UNet that predicts epsilon, but other has .* v_pred"):
        export(peer, tmp_path / "out", base=tmp_path / "other")


@pytest.mark.thorough
def test_in_half_it_is_the_same_picture(peer: Peer, tmp_path: Path) -> None:
    bundle = export(peer, tmp_path / "out", precision="fp16")
    assert set(bundle.precisions) == {"fp16", "fp32"}
    assert bundle.manifest.numerics["half_vs_float32"]["network"]["value"] > 45
