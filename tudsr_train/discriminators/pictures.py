"""D over pictures: a frozen backbone's feature maps, level by level, and a head for each (Eq. 3 and 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tudsr_runtime.errors import TrainingError
from tudsr_train.discriminators.base import Discriminator, DiscriminatorConfig
from tudsr_train.discriminators.diff_augment import diff_augment, policies
from tudsr_train.discriminators.heads import make_head
from tudsr_train.vgg16 import IMAGENET_MEAN, IMAGENET_STD


class Backbone(nn.Module):
    """What a `PictureDiscriminator` looks with: `channels` per level, and an object with `feature_maps`."""

    channels: list[int]


class PictureDiscriminator(Discriminator):
    """D over pictures x (B, 3, R, R) in [-1, 1]: DiffAugment, ImageNet normalisation, a backbone, heads.

    No resize: R must be a multiple of the coarsest cell (16 pixels for a ViT), and large enough for the
    head; TrainingError otherwise.

    Args:
        backbone: has `channels` per level, and gives an object with `feature_maps`.
        strides: pixels per cell of each level.
    """

    space = "pixel"
    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, strides: tuple[int, ...], config: DiscriminatorConfig) -> None:
        super().__init__()
        self.in_bf16 = config.precision == "bf16"
        self.backbone, self.strides, self.policies = backbone, strides, policies(config.diff_augment)
        levels = zip(backbone.channels, strides, strict=True)
        heads = [make_head(config.head, channels, stride) for channels, stride in levels]
        self.heads = nn.ModuleList(heads)
        self.least = max(stride * made.smallest for stride, made in zip(strides, heads, strict=True))
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.rng: torch.Generator | None = None
        """What DiffAugment draws from; None is torch's own generator, which checkpoints hold."""

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """{f_x^l} of Eq. (3): (B, C_l, R / stride_l, R / stride_l), under the final LayerNorm for a ViT."""
        normalised = (x * 0.5 + 0.5 - self.mean) / self.std
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.in_bf16):
            maps = self.backbone(normalised).feature_maps
        return tuple(level.to(x.dtype) for level in maps)

    def forward(self, sample: Tensor) -> list[Tensor]:
        self._check(sample)
        with torch.autocast(sample.device.type, enabled=False):
            x = diff_augment(sample.to(self.mean.dtype), self.policies, self.rng)
            return [head(f) for head, f in zip(self.heads, self.features(x), strict=True)]

    def _check(self, x: Tensor) -> None:
        coarsest = max(self.strides)
        for side in x.shape[-2:]:
            if side % coarsest or side < self.least:
                raise TrainingError(
                    f"the discriminator cannot look at {x.shape[-1]} x {x.shape[-2]} pixels: it needs sides "
                    f"that are multiples of {coarsest} and at least {self.least}",
                    hint="choose another R, or another discriminator.head",
                )
