"""InvSR (Yue et al. 2025) as a network in one graph: SD-Turbo, started from noise that a network predicts.

    z_0 = E(bicubic x4 of x_L)                  n = mean + std e, of P(x_L, t)
    z_t = sqrt(A) z_0 + sqrt(1 - A) n           z_H = (z_t - sqrt(1 - A) B(z_t, t, c)) / sqrt(A)
    x_H = D(z_H)

P, the noise predictor, reads the picture in its own size. A stage of a bundle reads it enlarged, so that this
is no adapter of a stage, but a network that enlarges by 4. e is drawn anew for every picture there; here it
is drawn once, so that the same picture always gives the same result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import AttnDownBlock2D, UNetMidBlock2D
from torch import Tensor, nn

from tudsr_export.gates import require_finite
from tudsr_export.graphs import UnetStage, vae_graphs
from tudsr_export.layouts import load_pickle
from tudsr_export.networks import Network, require_honest
from tudsr_runtime.errors import BundleError
from tudsr_runtime.files import file_sha256
from tudsr_train.foreign import misread
from tudsr_train.generator import Generator
from tudsr_train.step import EPSILON

FACTOR = 4
TIMESTEP = 200
"""Where its one step starts."""
PROMPT = (
    "Cinematic, high-contrast, photo-realistic, 8k, ultra HD, meticulous detailing, hyper sharpness, "
    "perfect without deformations"
)
"""What it tells SD-Turbo of every picture."""
SEED = 12345
"""That of its own sampler, for e."""
HEAD, GROUPS, EPS = 64, 32, 1e-6
"""Of attention and norms in P; the weights do not say them."""
LOGVAR = (-30.0, 20.0)
WRAPPED = ("module.", "_orig_mod.")
"""What training in parallel and compiled models write before the names of weights."""


class NoisePredictor(nn.Module):
    """P at a fixed timestep: mean and logarithm of the variance of noise, (1, 2 C, h, w), from a picture.

    Its sizes are those of the weights: blocks of residual layers with attention, a half smaller after each
    but the last.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        blocks = _count(weights, "down_blocks.")
        widths = [weights[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(blocks)]
        temb, sines = weights["time_embedding.linear_1.weight"].shape
        out, last = weights["conv_out.weight"].shape[:2]
        self.time_proj = Timesteps(sines, True, 0)
        self.time_embedding = TimestepEmbedding(sines, temb)
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            AttnDownBlock2D(
                before, width, temb, num_layers=_count(weights, f"down_blocks.{i}.resnets."),
                resnet_eps=EPS, resnet_act_fn="silu", resnet_groups=GROUPS, attention_head_dim=HEAD,
                downsample_padding=0, downsample_type="conv" if i + 1 < blocks else None,
            )
            for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
        )  # fmt: skip
        self.mid_block = UNetMidBlock2D(
            last, temb, resnet_eps=EPS, resnet_groups=GROUPS, attention_head_dim=HEAD
        )
        self.conv_norm_out = nn.GroupNorm(GROUPS, last, EPS)
        self.conv_out = nn.Conv2d(last, out, 3, padding=1)
        self.load_state_dict(dict(weights))
        self.float().eval().requires_grad_(False)

    @property
    def smaller(self) -> int:
        """By how much the noise is smaller than the picture."""
        return int(2 ** (len(self.down_blocks) - 1))

    def bake(self, timestep: int) -> None:
        """Take the embedding of a timestep for good."""
        emb = self.time_embedding(self.time_proj(torch.tensor([timestep])))
        self.register_buffer("emb", emb.detach())
        del self.time_proj, self.time_embedding

    def forward(self, x_L: Tensor) -> Tensor:
        x, emb = self.conv_in(x_L), self.get_buffer("emb")
        for block in self.down_blocks:
            x, _ = block(x, emb)
        x = self.mid_block(x, emb)
        moments: Tensor = self.conv_out(nn.functional.silu(self.conv_norm_out(x)))
        return moments


class Inverse(nn.Module):
    """All of it: x_L (B, 3, h, w) in [-1, 1] to x_H, 4 times larger, not clamped.

    Takes over the UNet of `generator`, and changes it.
    """

    def __init__(self, generator: Generator, predictor: NoisePredictor, timestep: int, cells: int) -> None:
        super().__init__()
        level = float(generator.level(timestep))
        self.signal, self.noise = math.sqrt(level), math.sqrt(1 - level)
        self.predictor = predictor
        self.encoder, self.decoder = vae_graphs(generator.vae)
        self.unet = UnetStage(generator, timestep, EPSILON)
        self.register_buffer("drawn", drawn(generator.codec.channels, cells))

    def forward(self, x_L: Tensor) -> Tensor:
        z_0 = self.encoder(enlarged(x_L))
        e = self.get_buffer("drawn")[..., : z_0.shape[-2], : z_0.shape[-1]]
        z_t = self.signal * z_0 + self.noise * noise_of(self.predictor(x_L), e)
        z_H = self.unet(z_t)
        made: Tensor = self.decoder(z_H)
        return made


def enlarged(x_L: Tensor) -> Tensor:
    return nn.functional.interpolate(x_L, scale_factor=FACTOR, mode="bicubic")


def noise_of(moments: Tensor, e: Tensor) -> Tensor:
    mean, logvar = moments.chunk(2, 1)
    return mean + (0.5 * logvar.clamp(*LOGVAR)).exp() * e


def drawn(channels: int, cells: int) -> Tensor:
    """e for latents of up to cells x cells."""
    return torch.randn(1, channels, cells, cells, generator=torch.Generator().manual_seed(SEED))


def read_inverse(
    checkpoint: Path, base: Path, most_px: int, timestep: int | None = None, prompt: str | None = None
) -> Network:
    """InvSR's noise predictor, with the base that it was trained for.

    Args:
        most_px: side of the largest tile, in px of the result.
        timestep, prompt: None takes its own.

    Raises:
        BundleError: the checkpoint or the base is missing, damaged, or they do not go together.
        NotFiniteError: the checkpoint holds NaN or infinity.
        TrainingError: the prompt is too long.
    """
    t = TIMESTEP if timestep is None else timestep
    words = PROMPT if prompt is None else prompt
    predictor = NoisePredictor(_read_weights(checkpoint))
    generator = Generator.load(base, words).eval()
    _require_fit(checkpoint, predictor, generator, t)
    predictor.bake(t)
    cell = generator.pixels_per_cell
    multiple = math.lcm(generator.multiple, FACTOR * predictor.smaller) // FACTOR
    base_facts = {"id": generator.base_id, "sha256": generator.base_sha256}

    def reference(x_L: Tensor) -> Tensor:
        G = Generator.load(base, words).eval()
        z_0 = G.encode(enlarged(x_L))
        e = drawn(G.codec.channels, most_px // cell)[..., : z_0.shape[-2], : z_0.shape[-1]]
        level = G.level(t)
        z_t = level.sqrt() * z_0 + (1 - level).sqrt() * noise_of(predictor(x_L), e)
        return G.decode(G.denoise(z_t, t)).clamp(-1, 1)

    return Network(
        checkpoint,
        file_sha256(checkpoint),
        Inverse(generator, predictor, t, most_px // cell).eval().requires_grad_(False),
        "InvSR",
        (f"timestep {t}", f"on {generator.base_id}"),
        FACTOR,
        multiple,
        multiple,
        True,
        reference,
        "its noise, drawn anew for every picture there, is the same for all here",
        "diffusers",
        base_facts,
    )


def _read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of the encoder that P is, by their names in it."""
    if not checkpoint.is_file():
        raise BundleError(f"{checkpoint}: no noise predictor here (there is no such file)")
    saved = load_pickle(checkpoint)
    if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
        saved = saved["state_dict"]
    if not isinstance(saved, dict):
        raise BundleError(f"{checkpoint}: no noise predictor of InvSR's, but a {type(saved).__name__}")
    require_honest(checkpoint, saved)
    weights = {}
    for name, value in saved.items():
        for prefix in WRAPPED:
            name = name.removeprefix(prefix)
        weights[name.removeprefix("encoder.")] = value
        require_finite(value, f"{checkpoint}: {name}")
    with misread(f"{checkpoint}: no noise predictor of InvSR's"):
        NoisePredictor(weights)
    return weights


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered parts there are behind a prefix. ValueError where there is none."""
    numbers = {key.removeprefix(prefix).partition(".")[0] for key in weights if key.startswith(prefix)}
    if not numbers:
        raise ValueError(f"it has no {prefix.rstrip('.')}")
    return len(numbers)


def _require_fit(checkpoint: Path, predictor: NoisePredictor, generator: Generator, t: int) -> None:
    base = generator.base_id
    hint = "SD-Turbo, which it was trained for"
    if generator.backbone.component != "unet" or generator.prediction_type != EPSILON:
        raise BundleError(
            f"{checkpoint}: InvSR needs a UNet that predicts epsilon, but {base} has a "
            f"{type(generator.unet).__name__} that predicts {generator.prediction_type}",
            hint=hint,
        )
    cells, channels = FACTOR * predictor.smaller, predictor.conv_out.out_channels // 2
    if (cells, channels) != (generator.pixels_per_cell, generator.codec.channels):
        raise BundleError(
            f"{checkpoint}: its noise is for latents of {channels} channels and cells of {cells} px, those "
            f"of {base} have {generator.codec.channels} and {generator.pixels_per_cell} px",
            hint=hint,
        )
    if not 0 < t <= generator.noising.last:
        raise BundleError(f"timestep {t} is outside the schedule of {base}, 1 to {generator.noising.last}")
