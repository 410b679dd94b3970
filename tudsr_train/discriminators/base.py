"""D, the discriminator of both stages (paper section 3.5): what all kinds share, their settings, their door.

A frozen, pretrained backbone gives features; small heads, trained from scratch, score them (Eq. 3 and 4).
`dino_discriminator` looks at pictures with a DINOv3, as the paper does, `vgg_discriminator` with a VGG16;
`diffusion_discriminator` looks at latents with a diffusion UNet, as D3SR does. Each is chosen by one line of
a configuration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from tudsr_runtime.errors import TrainingError
from tudsr_train.generator import Generator
from tudsr_train.losses.adversarial import D3SR, TUDSR, AdversarialLoss

KINDS = ("none", "dinov3", "dinov3-convnext", "vgg16", "diffusion")


MOST_WIDTH, MOST_LAYERS = 4096, 100


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Which discriminator, and how it is made."""

    kind: str = "none"
    """none; dinov3 (the paper's); dinov3-convnext (the author's earlier code, OMGSR); vgg16 (ours: one small
    file, nobody's leave); diffusion (D3SR's)."""
    weights: str = ""
    """A folder or hub id, or for vgg16 also a file with torchvision's names; empty takes the kind's own
    (DINOv3-ViT-B as in the paper, DINOv3-ConvNeXt-L as in OMGSR, VGG16 of torchvision, SDXL 1.0 as in D3SR);
    `random` for tests and toys; `base`, for diffusion only, takes the UNet that the generator stands on
    (D3SR, table 4)."""
    layers: tuple[int, ...] = ()
    """Levels that are scored, counted from 1; empty takes the kind's own: blocks 3, 6, 9 of the ViT (paper
    3.5.1), stages 1, 2, 3 of the ConvNeXt (OMGSR), 2, 3, 4 of VGG16."""
    head: str = "vagan_conv"
    """vagan_conv (vision-aided GAN) or omgsr_conv (OMGSR); Fig. 3 leaves it open. Diffusion has an MLP."""
    diff_augment: str = "color,translation,cutout"
    """What is done to pictures before D sees them (DiffAugment, Zhao et al. 2020); empty for nothing. The
    paper does not mention it; every discriminator of the author's earlier code uses it."""
    lora_rank: int = 16
    """Rank, and alpha, of the LoRA of a diffusion discriminator (D3SR)."""
    width: int = 96
    """Channels of a backbone whose weights are `random`, a multiple of 32."""
    precision: str = "fp32"
    """What the frozen backbone of a discriminator over pictures computes in, fp32 or bf16; heads are float32
    in both. Where the processor or GPU has bfloat16 arithmetic, bf16 is faster. Ours."""

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise TrainingError(
                f"discriminator: precision {self.precision!r} is not known; fp32 and bf16 are"
            )
        if self.precision == "bf16" and self.kind == "diffusion":
            raise TrainingError(
                "discriminator: a diffusion one computes in float32 alone",
                hint="leave discriminator.precision at fp32",
            )
        if self.kind not in KINDS:
            raise TrainingError(f"discriminator: kind is {self.kind!r}; {', '.join(KINDS)} are known")
        if not 1 <= self.lora_rank <= MOST_WIDTH:
            raise TrainingError(f"discriminator: lora_rank must be 1 to {MOST_WIDTH}, not {self.lora_rank}")
        if not 32 <= self.width <= MOST_WIDTH or self.width % 32:
            raise TrainingError(
                f"discriminator: width must be a multiple of 32 up to {MOST_WIDTH}, not {self.width}"
            )
        if not all(1 <= layer <= MOST_LAYERS for layer in self.layers):
            raise TrainingError(
                f"discriminator: layers are counted from 1, to {MOST_LAYERS} at most, not {list(self.layers)}"
            )


class Discriminator(nn.Module):
    """D(x) = {logits^l} of Eq. (4): a frozen `backbone` and trained `heads`.

    Whatever mode the module is put in, the backbone stays in eval (DINOv3 draws random positions in train),
    and whatever `requires_grad_` is asked for, it stays frozen. Arithmetic is float32 also under autocast,
    but for a backbone over pictures where `precision` says so: spectral norm's power iteration is too coarse
    in bfloat16.
    """

    space: str
    """What a sample is: "pixel", x (B, 3, R, R) in [-1, 1], or "latent", the scaled z (B, C, h, w)."""
    backbone: nn.Module
    heads: nn.ModuleList
    """One per level."""

    def forward(self, sample: Tensor) -> list[Tensor]:
        """Logits per level, (B, 1, h_l, w_l); their sides depend on the head."""
        raise NotImplementedError

    def trainable(self) -> dict[str, nn.Parameter]:
        """What an optimizer may move, by name: the heads and, of a diffusion backbone, its LoRA."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if name.startswith("heads.") or "lora_" in name
        }

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.backbone.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze or unfreeze what is trainable; the backbone stays frozen."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        for parameter in self.trainable().values():
            parameter.requires_grad = requires_grad
        return self

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """D* of Algorithms 1 and 2: inside, gradients reach the sample and none of D's weights."""
        self.requires_grad_(False)
        try:
            yield
        finally:
            self.requires_grad_(True)

    def checkpoint_state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold: trainable parameters and the spectral norms' u and v, copied."""
        names = {*self.trainable(), *(f"heads.{name}" for name, _ in self.heads.named_buffers())}
        return {name: value.detach().clone() for name, value in self.state_dict().items() if name in names}

    def load_checkpoint_state(self, state: dict[str, Tensor]) -> None:
        """Take over `checkpoint_state`; TrainingError where it is of another discriminator."""
        own = self.checkpoint_state()
        if {key: v.shape for key, v in own.items()} != {key: v.shape for key, v in state.items()}:
            raise TrainingError(
                f"the checkpoint's discriminator ({len(state)} tensors) is not the configured one "
                f"({len(own)} tensors)",
                hint="resume with the configuration that the run was started with",
            )
        self.load_state_dict(state, strict=False)


def build_discriminator(config: DiscriminatorConfig, base: Generator, seed: int = 0) -> Discriminator:
    """Make D on the CPU, in train mode; its heads are drawn from `seed`, not from torch's own generator.

    Args:
        base: the generator: its UNet, prompt and noise schedule are what a diffusion discriminator may
            stand on. Not changed.

    Raises:
        TrainingError: kind none; an unknown head, layer or policy; weights that are not there (the message
            says where to get them) or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.kind == "diffusion":
            from tudsr_train.discriminators.diffusion import DiffusionDiscriminator

            discriminator: Discriminator = DiffusionDiscriminator.build(config, base)
        elif config.kind == "vgg16":
            from tudsr_train.discriminators.vgg16 import VggDiscriminator

            discriminator = VggDiscriminator.build(config)
        elif config.kind == "none":
            raise TrainingError(f"discriminator: there is none to build; {', '.join(KINDS[1:])} can be")
        else:
            from tudsr_train.discriminators.dino import DinoDiscriminator

            discriminator = DinoDiscriminator.build(config)
    return discriminator.requires_grad_(True).train()


def adversarial_loss(config: DiscriminatorConfig) -> AdversarialLoss:
    """The losses that belong to a kind: D3SR's for its diffusion discriminator, else the paper's."""
    return D3SR if config.kind == "diffusion" else TUDSR
