"""G, the one-step generator of both stages (paper Eq. 1 and 2), over any diffusers base.

    z_L = E(x_L) s      eps = B(z_L, t, c)      z_H = (z_L - sqrt(1 - abar_t) eps) / sqrt(abar_t)
    x_H = D(z_H / s)

E and D are the autoencoder, B the UNet, c a fixed prompt, t the stage's fixed timestep, abar_t diffusers'
`alphas_cumprod[t]`, s the autoencoder's scaling factor. Training, export and the tests all use this one file.
The LQ latent is fed as it is: no noise is added to it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tudsr_runtime.errors import BundleError, TrainingError
from tudsr_train.bases.folder import base_name, base_sha256, find_base
from tudsr_train.bases.prompt import prompt_of, read_prompt
from tudsr_train.foreign import misread, read_config, require_modest, without_bars

if TYPE_CHECKING:
    from diffusers import ModelMixin

EPSILON, V_PREDICTION, RESIDUAL = "epsilon", "v_prediction", "residual"
PREDICTION_TYPES = (EPSILON, V_PREDICTION)
CONFIGS = {
    "unet": "config.json", "vae": "config.json", "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
}  # fmt: skip


def one_step_weights(alpha_t: float | Tensor, prediction_type: str) -> tuple[float | Tensor, float | Tensor]:
    """(a, b) of z_H = a z_L + b B(z_L, t, c): Eq. (2), second line, by what the backbone predicts.

    Args:
        alpha_t: alphas_cumprod[t] (the paper's alpha_t), in (0, 1]; the weights are of its kind.
        prediction_type: "epsilon" as in the paper, "v_prediction" (Salimans and Ho 2022, appendix D), or
            "residual": z_H = z_L - B(z_L, t, c).
    """
    if prediction_type == RESIDUAL:
        return 1.0, -1.0
    if prediction_type == V_PREDICTION:
        return alpha_t**0.5, -((1 - alpha_t) ** 0.5)
    return alpha_t**-0.5, -(((1 - alpha_t) / alpha_t) ** 0.5)


def one_step(z_L: Tensor, prediction: Tensor, alpha_t: Tensor, prediction_type: str = EPSILON) -> Tensor:
    """Estimate z_H from z_L and the backbone's prediction in one step. Implements Eq. (2), second line.

    Args:
        z_L: latent (B, C, h, w), taken as the diffused latent at timestep t.
        prediction: B(z_L, t, c), same shape.
        alpha_t: alphas_cumprod[t] (the paper's alpha_t), a scalar in (0, 1].
        prediction_type: one of `one_step_weights`.
    """
    a, b = one_step_weights(alpha_t, prediction_type)
    return a * z_L + b * prediction


class Generator(nn.Module):
    """G(x_L, t, c) = x_H for one fixed prompt c. Images are (B, 3, H, W) in [-1, 1].

    The base is frozen; adapters (`tudsr_train.adapters`) add what is trained.
    """

    vae: ModelMixin
    unet: ModelMixin
    prompt_embeds: Tensor
    alphas_cumprod: Tensor

    def __init__(
        self,
        vae: nn.Module,
        unet: nn.Module,
        prompt_embeds: Tensor,
        alphas_cumprod: Tensor,
        prediction_type: str = "epsilon",
        base_id: str = "",
        base_sha256: str = "",
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise BundleError(
                f"the base predicts {prediction_type!r}; one-step restoration needs "
                f"{' or '.join(PREDICTION_TYPES)}"
            )
        self.vae, self.unet = vae, unet
        self.register_buffer("prompt_embeds", prompt_embeds, persistent=False)
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)
        self.prediction_type = prediction_type
        self.base_id, self.base_sha256, self.folder = base_id, base_sha256, folder
        self.requires_grad_(False)

    def use(self, name: str) -> None:
        """Make adapter `name` the active one, in the UNet and, where it has a part there, in the VAE encoder.

        As a side effect of PEFT its weights, and no other adapter's, now require gradients.
        """
        attached = [getattr(model, "peft_config", {}) for model in (self.unet, self.vae)]
        if not any(name in known for known in attached):
            raise ValueError(f"no adapter {name!r} is attached")
        for model, known in zip((self.unet, self.vae), attached, strict=True):
            if name in known:
                model.enable_adapters()
                model.set_adapter(name)
            elif known:
                model.disable_adapters()

    def set_prompt(self, prompt_embeds: Tensor) -> None:
        """Take `prompt_embeds` (1, L, D) for c; BundleError where the UNet attends to another width."""
        width = self.unet.config.cross_attention_dim
        if prompt_embeds.ndim != 3 or len(prompt_embeds) != 1 or prompt_embeds.shape[-1] != width:
            raise BundleError(
                f"the prompt embedding has shape {tuple(prompt_embeds.shape)}, "
                f"but {self.base_id or 'the base'} attends to (1, any length, {width})"
            )
        self.prompt_embeds = prompt_embeds.to(self.prompt_embeds)

    @property
    def scaling_factor(self) -> float:
        """s: what the autoencoder's latent is multiplied by."""
        return float(self.vae.config.scaling_factor)

    @property
    def pixels_per_cell(self) -> int:
        """Side of the square of pixels behind one latent cell: 8 for Stable Diffusion, 4 for nano."""
        config = self.vae.config
        return int(config.get("patch_size") or 2 ** (len(config.block_out_channels) - 1))

    @property
    def latent_margin(self) -> int:
        """Latent cells on each side that stand for pixels beyond the picture; 0 for Stable Diffusion."""
        return int(self.vae.config.get("margin", 0)) // self.pixels_per_cell

    @property
    def passed_channels(self) -> int:
        """How many channels of the latent, the first ones, pass the backbone as they are, because its rows of
        `conv_out` for them are zero: the pixels of a `FeatureAutoencoder`; 0 for other bases."""
        return int(getattr(self.vae, "pixel_channels", 0))

    def encode(self, x_L: Tensor, sample: bool = False) -> Tensor:
        """z_L = E(x_L) s, from the posterior's mode, or from a sample of it as the paper's lineage trains."""
        posterior = self.vae.encode(x_L).latent_dist
        return (posterior.sample() if sample else posterior.mode()) * self.scaling_factor

    def predict(self, z_L: Tensor, t: int) -> Tensor:
        """B(z_L, t, c), shape of z_L."""
        timestep = torch.full((len(z_L),), t, device=z_L.device)
        c = self.prompt_embeds.expand(len(z_L), -1, -1)
        return self.unet(z_L, timestep, c, return_dict=False)[0]

    def denoise(self, z_L: Tensor, t: int) -> Tensor:
        """z_H from z_L: the backbone and Eq. (2), second line. TrainingError where the schedule has no t."""
        if not 0 <= t < len(self.alphas_cumprod):
            raise TrainingError(
                f"timestep {t} is outside the schedule of {self.base_id}, 0 to {len(self.alphas_cumprod) - 1}"
            )
        # autocast computes the backbone in bfloat16, whose 8 bits would show in a latent that holds pixels
        prediction = self.predict(z_L, t).to(self.alphas_cumprod.dtype)
        return one_step(z_L.to(prediction.dtype), prediction, self.alphas_cumprod[t], self.prediction_type)

    def decode(self, z_H: Tensor) -> Tensor:
        """x_H = D(z_H / s), not clamped."""
        return self.vae.decode(z_H / self.scaling_factor).sample

    def forward(self, x_L: Tensor, t: int, sample: bool = False) -> Tensor:
        """Restore x_L in one step; Eq. (2). Returns (B, 3, H, W) clamped to [-1, 1]."""
        return self.decode(self.denoise(self.encode(x_L, sample), t)).clamp(-1, 1)

    def enable_gradient_checkpointing(self) -> None:
        """Compute the activations of UNet and autoencoder again in the backward, instead of keeping them."""
        self.unet.enable_gradient_checkpointing()
        if hasattr(self.vae, "enable_gradient_checkpointing"):
            self.vae.enable_gradient_checkpointing()

    @classmethod
    def load(cls, base: str | Path, prompt: str = "", prompt_file: str | Path = "") -> Generator:
        """Load a base in the diffusers layout: unet/, vae/, scheduler/ and a prompt.

        Weights are float32, frozen.

        Args:
            base: folder, or `owner/name` on the Hugging Face hub.
            prompt: fixed prompt, encoded once by the base's own text encoder (see `prompt_of`).
            prompt_file: safetensors file with an embedding to take instead.

        Raises BundleError (exit 5) where a part is missing, damaged or does not fit.
        """
        from diffusers import DDPMScheduler, UNet2DConditionModel

        folder = find_base(base)
        if not (folder / "unet" / "config.json").is_file():
            raise BundleError(
                f"{base}: no diffusers base here (unet/config.json is missing)",
                hint="give a folder that holds unet/, vae/ and scheduler/, such as Stable Diffusion 2.1-base",
            )
        with misread(f"{base}: the base cannot be read"), without_bars():
            _require_modest_configs(folder)
            scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
            unet = _whole(UNet2DConditionModel, folder / "unet")
            vae = _load_vae(folder / "vae")
            prompt_embeds = read_prompt(Path(prompt_file)) if prompt_file else prompt_of(folder, prompt)
        channels = (vae.config.latent_channels, unet.config.in_channels, unet.config.out_channels)
        if len(set(channels)) > 1:
            raise BundleError(
                f"{base}: latents have {channels[0]} channels, the UNet takes {channels[1]} "
                f"and gives {channels[2]}",
                hint="a base for plain image generation, not for inpainting or depth",
            )
        if unet.config.addition_embed_type is not None:
            raise BundleError(
                f"{base}: its UNet needs more than a prompt ({unet.config.addition_embed_type})",
                hint="a Stable Diffusion 1.5, 2.1 or Turbo base, not XL",
            )
        width = unet.config.cross_attention_dim
        if prompt_embeds.shape[-1] != width:
            raise BundleError(
                f"{base}: the prompt embedding is {prompt_embeds.shape[-1]} wide, "
                f"but the UNet attends to {width}"
            )
        G = cls(
            vae.eval(),
            unet.eval(),
            prompt_embeds,
            scheduler.alphas_cumprod,
            scheduler.config.prediction_type,
            base_id=base_name(base),
            base_sha256=base_sha256(folder),
            folder=folder,
        )
        with misread(f"{base}: the base cannot be used"):
            G.try_out()
        return G

    @torch.no_grad()
    def try_out(self) -> None:
        """Send one small picture through all parts. Raises whatever these raise where their configs, which
        may ask for inputs that a one-step restorer does not have, do not go together."""
        if not 0 < self.scaling_factor < math.inf:
            raise ValueError(f"its autoencoder's scaling factor is {self.scaling_factor}")
        multiple = self.pixels_per_cell * 2 ** (len(self.unet.config.block_out_channels) - 1)
        side = multiple * (1 + (self.latent_margin * self.pixels_per_cell) // multiple)
        x_L = torch.zeros(1, 3, side, side)
        z_L = self.encode(x_L)
        if self.decode(self.predict(z_L, 0)).shape != x_L.shape:
            raise ValueError("its autoencoder does not give back a picture of the same size")


def _require_modest_configs(folder: Path) -> None:
    for part, name in CONFIGS.items():
        if (folder / part / name).is_file():
            require_modest(read_config(folder / part / name), f"{part}/{name}")


def _load_vae(folder: Path) -> ModelMixin:
    from diffusers import AutoencoderKL

    from tudsr_train.bases.feature_autoencoder import FeatureAutoencoder
    from tudsr_train.bases.patch_autoencoder import PatchAutoencoder

    kind = read_config(folder / "config.json")["_class_name"]
    if kind == "PatchAutoencoder":
        return PatchAutoencoder.from_config(PatchAutoencoder.load_config(folder))
    weighty = {"AutoencoderKL": AutoencoderKL, "FeatureAutoencoder": FeatureAutoencoder}
    if kind in weighty:
        return _whole(weighty[kind], folder)
    raise ValueError(f"vae/ is a {kind}; PatchAutoencoder, {' and '.join(weighty)} are known")


def _whole(kind: type[ModelMixin], folder: Path) -> ModelMixin:
    """A model in float32; ValueError where weights are missing, which diffusers would draw at random."""
    model, found = kind.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True)
    if found["missing_keys"]:
        raise ValueError(
            f"{folder.name}/ lacks {len(found['missing_keys'])} weights: {found['missing_keys'][0]}"
        )
    return model
