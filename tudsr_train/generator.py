"""G, the one-step generator of both stages (paper Eq. 1 and 2), over any diffusers base.

    z_L = (E(x_L) - shift) s      z_H = a z_L + b B(z_L, t, c)      x_H = D(z_H / s + shift)

E and D are the autoencoder with its shift and scale (`Codec`), B a UNet or a transformer (`Backbone`), c a
fixed prompt, t the stage's fixed timestep, a and b what follows from t and from what B predicts
(`tudsr_train.step`); the level of noise at t is the base's (`Noising`). Training, export and the tests all
use this one file.
The LQ latent is fed as it is: no noise is added to it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tudsr_runtime.errors import BundleError, TrainingError
from tudsr_train.backbones.backbone import CONDITIONS, PROMPT, Backbone, Conditions
from tudsr_train.backbones.registry import BACKBONES, find_backbone
from tudsr_train.backbones.unet import UNet
from tudsr_train.bases.codec import Codec, load_autoencoder
from tudsr_train.bases.folder import PARTS, base_name, base_sha256, find_base
from tudsr_train.bases.prompt import conditions_of, read_conditions
from tudsr_train.foreign import misread, read_config, require_modest, without_bars
from tudsr_train.noising import Noising, VariancePreserving, noising_of
from tudsr_train.recomputation import PARTS as CHECKPOINTED
from tudsr_train.recomputation import recompute
from tudsr_train.step import EPSILON, PREDICTION_TYPES, RESIDUAL, V_PREDICTION, one_step, one_step_weights

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["EPSILON", "RESIDUAL", "V_PREDICTION", "Generator", "one_step", "one_step_weights"]


class Generator(nn.Module):
    """G(x_L, t, c) = x_H for one fixed prompt c. Images are (B, 3, H, W) in [-1, 1].

    The base is frozen; adapters (`tudsr_train.adapters`) add what is trained.

    Args:
        unet: B, a UNet or a transformer.
        prompt_embeds: c: the prompt's embedding (1, L, D), or all conditions by name.
        noising: the base's, or the `alphas_cumprod` of a variance-preserving one.
        backbone: how B is called; None: by its class, and as a UNet where that is unknown.
    """

    vae: ModelMixin
    unet: ModelMixin
    noising: Noising
    prompt_embeds: Tensor

    def __init__(
        self,
        vae: nn.Module,
        unet: nn.Module,
        prompt_embeds: Tensor | Mapping[str, Tensor],
        noising: Tensor | Noising,
        prediction_type: str = "epsilon",
        base_id: str = "",
        base_sha256: str = "",
        folder: Path | None = None,
        backbone: Backbone | None = None,
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise BundleError(
                f"the base predicts {prediction_type!r}; one-step restoration needs "
                f"{', '.join(PREDICTION_TYPES[:-1])} or {PREDICTION_TYPES[-1]}"
            )
        self.vae, self.unet = vae, unet
        self.backbone = backbone or BACKBONES.get(type(unet).__name__) or BACKBONES[UNet.name]
        self.noising = noising if isinstance(noising, Noising) else VariancePreserving(noising)
        c = {PROMPT: prompt_embeds} if isinstance(prompt_embeds, Tensor) else prompt_embeds
        for name in CONDITIONS:
            self.register_buffer(name, c.get(name), persistent=False)
        self.prediction_type = prediction_type
        self.base_id, self.base_sha256, self.folder = base_id, base_sha256, folder
        self.latent_offset = 0.0
        """What is added to z_L where the backbone reads it: for one that was trained on other latents."""
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

    @property
    def conditions(self) -> Conditions:
        """c, by name."""
        named = {name: getattr(self, name) for name in CONDITIONS}
        return {name: value for name, value in named.items() if value is not None}

    def set_prompt(self, prompt_embeds: Tensor | Mapping[str, Tensor]) -> None:
        """Take an embedding (1, L, D), or all conditions by name, for c; BundleError where the backbone takes
        others."""
        c = {PROMPT: prompt_embeds} if isinstance(prompt_embeds, Tensor) else dict(prompt_embeds)
        self.backbone.require(c, self.unet, self.base_id)
        for name, value in c.items():
            setattr(self, name, value.to(self.prompt_embeds))

    @property
    def codec(self) -> Codec:
        """E and D."""
        return Codec(self.vae)

    @property
    def alphas_cumprod(self) -> Tensor:
        """The schedule of a variance-preserving base."""
        return self.noising.levels

    @property
    def scaling_factor(self) -> float:
        """s: what the autoencoder's latent is multiplied by."""
        return self.codec.scaling_factor

    @property
    def pixels_per_cell(self) -> int:
        """Side of the square of pixels behind one latent cell: 8 for Stable Diffusion, 4 for nano."""
        return self.codec.pixels_per_cell

    @property
    def multiple(self) -> int:
        """What a picture's sides must be multiples of, in pixels."""
        return self.pixels_per_cell * self.backbone.cells(self.unet)

    @property
    def latent_margin(self) -> int:
        """Latent cells on each side that stand for pixels beyond the picture; 0 for Stable Diffusion."""
        return self.codec.latent_margin

    @property
    def passed_channels(self) -> int:
        """How many channels of the latent, the first ones, pass the backbone as they are, because its rows of
        `conv_out` for them are zero: the pixels of a `FeatureAutoencoder`; 0 for other bases."""
        return int(getattr(self.vae, "pixel_channels", 0))

    def encode(self, x_L: Tensor, sample: bool = False) -> Tensor:
        """z_L of x_L, from the posterior's mode, or from a sample of it as the paper's lineage trains."""
        return self.codec.encode(x_L, sample)

    def predict(self, z_L: Tensor, t: int) -> Tensor:
        """B(z_L, t, c), shape of z_L."""
        timestep = torch.full((len(z_L),), t, device=z_L.device)
        told = self.noising.told(timestep, self.backbone.time_unit)
        read = z_L + self.latent_offset if self.latent_offset else z_L
        return self.backbone.predict(self.unet, read, told, self.conditions)

    def level(self, t: int) -> Tensor:
        """The level of noise at t, a scalar. TrainingError where the schedule has no t."""
        if not self.noising.first <= t <= self.noising.last:
            raise TrainingError(
                f"timestep {t} is outside the schedule of {self.base_id}, {self.noising.first} to "
                f"{self.noising.last}"
            )
        return self.noising.levels[t]

    def restored(self, z_L: Tensor, prediction: Tensor, t: int, formula: str | None = None) -> Tensor:
        """z_H from z_L and B(z_L, t, c), Eq. (2), second line; by another formula than the base's if one is
        given (`tudsr_train.step`). TrainingError where the schedule has no t."""
        return one_step(z_L, prediction, self.level(t), formula or self.prediction_type)

    def denoise(self, z_L: Tensor, t: int) -> Tensor:
        """z_H from z_L: the backbone and Eq. (2), second line. TrainingError where the schedule has no t."""
        dtype = self.level(t).dtype
        # autocast computes the backbone in bfloat16, whose 8 bits would show in a latent that holds pixels
        prediction = self.predict(z_L, t).to(dtype)
        return self.restored(z_L.to(dtype), prediction, t)

    def decode(self, z_H: Tensor) -> Tensor:
        """x_H = D(z_H / s + shift), not clamped."""
        return self.codec.decode(z_H)

    def forward(self, x_L: Tensor, t: int, sample: bool = False) -> Tensor:
        """Restore x_L in one step; Eq. (2). Returns (B, 3, H, W) clamped to [-1, 1]."""
        return self.decode(self.denoise(self.encode(x_L, sample), t)).clamp(-1, 1)

    def enable_gradient_checkpointing(self, parts: Collection[str] = CHECKPOINTED) -> None:
        """Compute the activations of these parts again in the backward, instead of keeping them."""
        recompute(self.unet, self.vae, parts)

    @classmethod
    def load(
        cls, base: str | Path, prompt: str = "", prompt_file: str | Path = "", prompt_tokens: int = 0
    ) -> Generator:
        """Load a base in the diffusers layout: unet/ or transformer/, vae/, scheduler/ and a prompt.

        Weights are float32, frozen.

        Args:
            base: folder, or `owner/name` on the Hugging Face hub.
            prompt: fixed prompt, encoded once by the base's own text encoders (see `conditions_of`).
            prompt_file: safetensors file with an embedding to take instead.
            prompt_tokens: how many tokens of the prompt are kept, the first ones; 0 for all.

        Raises BundleError (exit 5) where a part is missing, damaged or does not fit.
        """
        folder = find_base(base)
        backbone = find_backbone(base, folder)
        with misread(f"{base}: the base cannot be read"), without_bars():
            _require_modest_configs(folder)
            noising, prediction_type = noising_of(folder / "scheduler")
            network = backbone.load(folder)
            vae = load_autoencoder(folder / "vae")
            if prompt_file:
                c = read_conditions(Path(prompt_file))
            else:
                c = conditions_of(folder, backbone, network, prompt)
        channels = (vae.config.latent_channels, *backbone.channels(network))
        if len(set(channels)) > 1:
            raise BundleError(
                f"{base}: latents have {channels[0]} channels, the {backbone.part} takes {channels[1]} "
                f"and gives {channels[2]}",
                hint="a base for plain image generation, not for inpainting or depth",
            )
        with misread(f"{base}: the base cannot be used"):
            backbone.refuse(network)
        width = backbone.widths(network)[PROMPT]
        if c[PROMPT].shape[-1] != width:
            raise BundleError(
                f"{base}: the prompt embedding is {c[PROMPT].shape[-1]} wide, "
                f"but the {backbone.part} attends to {width}"
            )
        backbone.require(c, network, base_name(base))
        if prompt_tokens:
            c[PROMPT] = c[PROMPT][:, :prompt_tokens].contiguous()
        G = cls(
            vae.eval(),
            network.eval(),
            c,
            noising,
            prediction_type,
            base_id=base_name(base),
            base_sha256=base_sha256(folder),
            folder=folder,
            backbone=backbone,
        )
        with misread(f"{base}: the base cannot be used"):
            G.try_out()
        return G

    @torch.no_grad()
    def try_out(self) -> None:
        """Send one small picture through all parts. Raises whatever these raise where their configs, which
        may ask for inputs that a one-step restorer does not have, do not go together."""
        self.codec.require_sound()
        multiple = self.multiple
        side = multiple * (1 + (self.latent_margin * self.pixels_per_cell) // multiple)
        x_L = torch.zeros(1, 3, side, side)
        z_L = self.encode(x_L)
        if self.decode(self.predict(z_L, self.noising.first)).shape != x_L.shape:
            raise ValueError("its autoencoder does not give back a picture of the same size")


def _require_modest_configs(folder: Path) -> None:
    for part in (part for part in PARTS if not part.startswith("tokenizer")):
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        if (folder / part / name).is_file():
            config = read_config(folder / part / name, infinite=part == "scheduler")
            require_modest(config, f"{part}/{name}")
