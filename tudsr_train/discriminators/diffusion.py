"""D3SR's discriminator: a diffusion network looks at noised latents (Li et al. 2024, section 3; `docs`).

    F(z, t) = sqrt(abar_t) z + sqrt(1 - abar_t) eps,   t ~ U[0, T),   eps ~ N(0, I)

or by a flow's noising (`tudsr_train.noising`). conv_in, the down blocks and the mid block of a UNet, or the
first half of a transformer's blocks, with a LoRA in the blocks; an MLP scores every cell of what comes out,
which stands for a patch of the picture. No latent is decoded for it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from tudsr_runtime.errors import BundleError, TrainingError
from tudsr_train.backbones.backbone import POOLED, PROMPT, Backbone, Conditions, Tokens, cut_in_the_middle
from tudsr_train.backbones.registry import BACKBONES
from tudsr_train.backbones.unet import UNet
from tudsr_train.bases.prompt import prompt_of
from tudsr_train.discriminators.base import Discriminator, DiscriminatorConfig
from tudsr_train.foreign import misread, without_bars
from tudsr_train.generator import Generator
from tudsr_train.noising import Noising, VariancePreserving
from tudsr_train.vgg16 import RANDOM

if TYPE_CHECKING:
    from diffusers import ModelMixin

DEFAULT_WEIGHTS = "stabilityai/stable-diffusion-xl-base-1.0"
BASE = "base"
LORA_TARGETS = r"(down_blocks|mid_block)\..*(conv1|conv2|conv_shortcut|conv|to_q|to_k|to_v|to_out\.0)"
"""D3SR says which blocks, not which layers; these are the generator's own."""


class PatchMLP(nn.Sequential):
    """Mid-block features (B, C, h, w) to logits (B, 1, h, w): two blocks, each cell by itself.

    D3SR's figure shows two blocks and nothing more; their widths, and the LayerNorm that brings a raw
    residual stream to unit scale, are ours.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.LayerNorm(channels),
            nn.Linear(channels, channels // 2),
            nn.SiLU(),
            nn.Linear(channels // 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        cells = x.movedim(1, -1)
        for layer in self:
            cells = layer(cells)
        return cells.movedim(-1, 1)


class DiffusionDiscriminator(Discriminator):
    """D over scaled latents z (B, C, h, w); one level of logits (B, 1, h_mid, w_mid).

    Args:
        unet: any diffusers `UNet2DConditionModel`, taken over, cut after its mid block; or a transformer that
            is known (`tudsr_train.backbones`), cut after half of its blocks. Frozen, given a LoRA.
        prompt_embeds: (1, L, D), what its cross-attention sees; or all of c by name.
        noising: how it was trained to be noised; (T,): its `alphas_cumprod`.
        pixels_per_cell: side of the square of pixels behind a latent cell, for SDXL's size conditions.
    """

    space = "latent"
    backbone: ModelMixin
    noising: Noising
    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor | None

    def __init__(
        self,
        unet: ModelMixin,
        prompt_embeds: Tensor | Conditions,
        noising: Tensor | Noising,
        pixels_per_cell: int,
        rank: int,
    ) -> None:
        super().__init__()
        self.pixels_per_cell = pixels_per_cell
        self.kind: Backbone = BACKBONES.get(type(unet).__name__) or BACKBONES[UNet.name]
        if self.looks_at_tokens:
            self.backbone = cut_in_the_middle(unet).requires_grad_(False).eval()
            _add_lora(self.backbone, rank, list(self.kind.lora_targets["standard"]))
            self.heads = nn.ModuleList([PatchMLP(unet.get_submodule("proj_out").in_features)])
        else:
            self.backbone = _cut_after_mid_block(unet)
            _add_lora(self.backbone, rank, LORA_TARGETS)
            self.heads = nn.ModuleList([PatchMLP(unet.config.block_out_channels[-1])])
        c = {PROMPT: prompt_embeds} if isinstance(prompt_embeds, Tensor) else prompt_embeds
        self.register_buffer("prompt_embeds", c[PROMPT], persistent=False)
        self.register_buffer("pooled_prompt_embeds", c.get(POOLED), persistent=False)
        self.noising = noising if isinstance(noising, Noising) else VariancePreserving(noising)
        self.rng: torch.Generator | None = None
        """What timesteps and noise are drawn from; None is torch's own generator, which checkpoints hold."""

    @classmethod
    def build(cls, config: DiscriminatorConfig, base: Generator) -> Self:
        """Build it from a diffusers folder or hub id, the generator's own base, or an untrained UNet."""
        channels = base.codec.channels
        c: Tensor | Conditions = {name: value.clone() for name, value in base.conditions.items()}
        noising: Tensor | Noising = copy.deepcopy(base.noising)
        if config.weights == BASE:
            unet = _without_adapters(base.unet)
        elif config.weights == RANDOM:
            unet = _random_unet(config.width, channels, base.prompt_embeds.shape[-1])
            c = base.prompt_embeds.clone()
        else:
            unet, noising = _load(config.weights or DEFAULT_WEIGHTS)
            c = _prompt(unet, config.weights or DEFAULT_WEIGHTS, base).clone()
        own = (BACKBONES.get(type(unet).__name__) or BACKBONES[UNet.name]).channels(unet)[0]
        if own != channels:
            raise TrainingError(
                f"the diffusion discriminator takes latents of {own} channels, but the base makes {channels}",
                hint="set discriminator.weights to a UNet of the base's own latent space, or to `base`",
            )
        return cls(unet, c, noising, base.pixels_per_cell, config.lora_rank)

    @property
    def looks_at_tokens(self) -> bool:
        """Whether it stands on a transformer."""
        return self.kind.name != UNet.name

    @property
    def alphas_cumprod(self) -> Tensor:
        """The schedule of a variance-preserving backbone."""
        return self.noising.levels

    def diffuse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(F(z, t), t): a timestep for every latent of the batch and noise, both from `rng`."""
        device = self.rng.device if self.rng else z.device
        t = self.noising.draw(len(z), self.rng, device)
        eps = torch.randn(z.shape, generator=self.rng, device=device, dtype=z.dtype).to(z.device)
        t = t.to(z.device)
        return self.noising.add(z, eps, t), t

    def features(self, z_t: Tensor, t: Tensor) -> Tensor:
        """The mid block's output (B, C, h_mid, w_mid) for a diffused latent; or a transformer's tokens."""
        t = self.noising.told(t, self.kind.time_unit)
        return self._tokens(z_t, t) if self.looks_at_tokens else self._mid_block(z_t, t)

    def _tokens(self, z_t: Tensor, t: Tensor) -> Tensor:
        c = {PROMPT: self.prompt_embeds, POOLED: self.pooled_prompt_embeds}
        known = {name: value.to(z_t.dtype) for name, value in c.items() if value is not None}
        with Tokens(self.backbone) as tokens:
            self.kind.predict(self.backbone, z_t, t, known)
        cells = self.kind.cells(self.backbone)
        sides = [side // cells for side in z_t.shape[-2:]]
        return tokens.found.transpose(1, 2).unflatten(2, sides)

    def _mid_block(self, z_t: Tensor, t: Tensor) -> Tensor:
        unet = self.backbone
        c = self.prompt_embeds.to(z_t.dtype).expand(len(z_t), -1, -1)
        emb = unet.time_embedding(unet.get_time_embed(sample=z_t, timestep=t))
        added = unet.get_aug_embed(
            emb=emb, encoder_hidden_states=c, added_cond_kwargs=self._added_conditions(z_t)
        )
        emb = emb if added is None else emb + added
        sample = unet.conv_in(z_t)
        for block in [*unet.down_blocks, unet.mid_block]:
            attends = getattr(block, "has_cross_attention", False)
            sample = block(sample, emb, encoder_hidden_states=c) if attends else block(sample, emb)
            sample = sample[0] if isinstance(sample, tuple) else sample
        return sample

    def forward(self, sample: Tensor) -> list[Tensor]:
        with torch.autocast(sample.device.type, enabled=False):
            z_t, t = self.diffuse(sample.to(self.prompt_embeds.dtype))
            return [self.heads[0](self.features(z_t, t))]

    def _added_conditions(self, z: Tensor) -> dict[str, Tensor]:
        """SDXL's: the pooled prompt, which is zero for an empty one, and (R, R, 0, 0, R, R)."""
        config = self.backbone.config
        if config.addition_embed_type != "text_time":
            return {}
        pooled = self.pooled_prompt_embeds
        if pooled is None:
            width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            pooled = z.new_zeros(1, width)
        height, width = (side * self.pixels_per_cell for side in z.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=z.dtype, device=z.device)
        return {"text_embeds": pooled.to(z.dtype).expand(len(z), -1), "time_ids": sizes.expand(len(z), -1)}


def _cut_after_mid_block(unet: ModelMixin) -> ModelMixin:
    if unet.mid_block is None or unet.config.addition_embed_type not in (None, "text_time"):
        raise TrainingError(
            "the diffusion discriminator needs a UNet with a mid block, conditioned as Stable Diffusion's or "
            f"SDXL's are; this one has addition_embed_type {unet.config.addition_embed_type!r}"
        )
    unet.up_blocks, unet.conv_norm_out, unet.conv_out = nn.ModuleList(), None, nn.Identity()
    return unet.requires_grad_(False).eval()


def _add_lora(unet: ModelMixin, rank: int, targets: str | list[str]) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
    unet.add_adapter(config, adapter_name="discriminator")


def _without_adapters(unet: ModelMixin) -> ModelMixin:
    """A copy of the base's UNet as it was before any adapter."""
    plain = copy.deepcopy(unet)
    if getattr(plain, "peft_config", None):
        plain.unload_lora()
    return plain


def _random_unet(width: int, channels: int, prompt_width: int) -> ModelMixin:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(width // 2, width),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=prompt_width,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def _load(where: str) -> tuple[ModelMixin, Tensor]:
    from diffusers import DDPMScheduler, UNet2DConditionModel

    hint = (
        "set discriminator.weights to a folder or hub id with unet/ and scheduler/ (SDXL 1.0 base in D3SR), "
        "or to `base` for the generator's own UNet"
    )
    with misread(f"no diffusion discriminator at {where}", TrainingError, hint=hint), without_bars():
        unet = UNet2DConditionModel.from_pretrained(where, subfolder="unet", torch_dtype=torch.float32)
        scheduler = DDPMScheduler.from_pretrained(where, subfolder="scheduler")
    return unet, scheduler.alphas_cumprod


def _prompt(unet: ModelMixin, where: str, base: Generator) -> Tensor:
    """An empty prompt: zeros for SDXL, as it was trained (`force_zeros_for_empty_prompt`), else encoded."""
    config = unet.config
    if config.addition_embed_type == "text_time":
        return torch.zeros(1, 77, config.cross_attention_dim)
    try:
        prompt = prompt_of(Path(where))
    except BundleError:
        prompt = base.prompt_embeds
    if prompt.shape[-1] != config.cross_attention_dim:
        raise TrainingError(
            f"{where}: no prompt of its own, and the base's has {prompt.shape[-1]} channels where this UNet "
            f"takes {config.cross_attention_dim}",
            hint="put its text_encoder/ and tokenizer/ beside its unet/",
        )
    return prompt
