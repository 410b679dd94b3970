"""A discriminator that needs one small file: frozen VGG16 features of several levels, a head for each.

Fine levels see texture, coarse ones see things; a picture of 64 pixels is enough. Not the paper's, whose
DINOv3 knows more; the arrangement (features of several levels, spectral norm, BlurPool) is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from tudsr_runtime.errors import TrainingError
from tudsr_train.discriminators.base import DiscriminatorConfig
from tudsr_train.discriminators.pictures import Backbone, PictureDiscriminator
from tudsr_train.vgg16 import VGG16_WIDTHS, load_vgg16, vgg16_stages

DEFAULT_WEIGHTS = "timm/vgg16.tv_in1k"
DEFAULT_LAYERS = (2, 3, 4)


@dataclass(frozen=True)
class Features:
    """What a backbone gives: (B, C_l, h_l, w_l) per level."""

    feature_maps: tuple[Tensor, ...]


class Vgg16(Backbone):
    """relu of the last convolution of each stage in `layers` (1 to 5), before pooling, as it was trained.

    Each level is divided by a constant, its size in a fixed drawing: VGG16 has no norms, and its raw features
    would start heads off at logits of several units.
    """

    def __init__(self, weights: dict[str, Tensor], layers: tuple[int, ...]) -> None:
        super().__init__()
        self.stages, self.layers = vgg16_stages(weights, max(layers)), layers
        self.channels = [VGG16_WIDTHS[layer - 1] for layer in layers]
        with torch.no_grad():
            self.sizes = [float(level.square().mean().sqrt()) for level in self._maps(_drawing())]

    def forward(self, x: Tensor) -> Features:
        pairs = zip(self._maps(x), self.sizes, strict=True)
        return Features(tuple(level / size for level, size in pairs))

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for number, stage in enumerate(self.stages, 1):
            x = F.max_pool2d(x, 2) if number > 1 else x
            for convolution in stage.children():
                x = F.relu(convolution(x))
            if number in self.layers:
                maps.append(x)
        return maps


def _drawing() -> Tensor:
    """Noise whose amplitude falls with its frequency, as in photographs: (1, 3, 64, 64), of variance 1."""
    rows, columns = torch.fft.fftfreq(64)[:, None], torch.fft.rfftfreq(64)[None]
    amplitude = 1 / (rows.square() + columns.square()).sqrt().clamp(min=1 / 64)
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.fft.rfft2(torch.randn(1, 3, 64, 64, generator=generator)) * amplitude
    drawn = torch.fft.irfft2(spectrum, s=(64, 64))
    return (drawn - drawn.mean()) / drawn.std()


class VggDiscriminator(PictureDiscriminator):
    """D over pictures whose backbone is a VGG16."""

    @classmethod
    def build(cls, config: DiscriminatorConfig) -> Self:
        """Build it from pretrained weights, or untrained ones where `random` is asked for by name."""
        layers = config.layers or DEFAULT_LAYERS
        if list(layers) != sorted(set(layers)) or layers[0] < 1 or layers[-1] > len(VGG16_WIDTHS):
            raise TrainingError(
                f"discriminator.layers is {list(layers)}; expected ascending numbers of stages, 1 to 5"
            )
        backbone = Vgg16(load_vgg16(config.weights or DEFAULT_WEIGHTS), layers)
        return cls(backbone, tuple(2 ** (layer - 1) for layer in layers), config)
