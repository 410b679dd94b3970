"""DHead^l of Eq. (4): what scores one level of features, patch by patch, trained from scratch.

The paper shows its heads in a figure only (Fig. 3: BlurPool, several levels); two published ones are here.
Every convolution is under spectral norm (Miyato et al. 2018), every downsampling behind a BlurPool (Zhang
2019), so that D answers to content and not to the phase of a sampling grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tudsr_runtime.errors import TrainingError

BINOMIAL = (1.0, 3.0, 3.0, 1.0)


class BlurPool(nn.Module):
    """Low-pass (binomial 4x4, zero-padded) and subsample: (B, C, H, W) to about (B, C, H / stride, ...).

    With the padding of 1 the side n becomes n - 1 at stride 1 and n // 2 at stride 2.
    """

    filter: Tensor

    def __init__(self, channels: int, stride: int, padding: int = 1) -> None:
        super().__init__()
        taps = torch.tensor(BINOMIAL) / sum(BINOMIAL)
        self.channels, self.stride, self.padding = channels, stride, padding
        self.register_buffer("filter", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.filter.expand(self.channels, -1, -1, -1)
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding, groups=self.channels)


class Head(nn.Sequential):
    """Features (B, C, n, n) to logits (B, 1, m, m)."""

    smallest: int
    """Least n that leaves a logit."""

    def __init__(self, *layers: nn.Module, smallest: int) -> None:
        super().__init__(*layers)
        self.smallest = smallest


def vagan_conv(channels: int, stride: int) -> Head:  # noqa: ARG001 - every head is called alike
    """The convolutional branch of vision-aided GAN's multi-level heads (Kumari et al. 2022).

    885 k parameters for 768 channels; a 32 x 32 grid gives 8 x 8 logits.
    """
    width = 128
    return Head(
        BlurPool(channels, stride=1, padding=2),
        spectral_norm(nn.Conv2d(channels, width, 3, stride=2)),
        nn.LeakyReLU(0.2),
        BlurPool(width, stride=1),
        spectral_norm(nn.Conv2d(width, 1, 1, stride=2)),
        smallest=4,
    )


OMGSR_RECIPES = {4: ((0.5, 1, 1), (2, 2, 2)), 8: ((0.5, 0.5, 1), (1, 2, 2)), 16: ((0.5, 0.5, 0.5), (1, 1, 2))}
"""Pixels per feature cell to (ratio of channels, stride) of each convolution."""


def omgsr_conv(channels: int, stride: int) -> Head:
    """The head of the author's earlier code (OMGSR) for 512 pixels: three blurred convolutions, one logit.

    3.5 M parameters for 768 channels at 16 pixels per cell; a 32 x 32 grid gives one logit.
    """
    layers: list[nn.Module] = []
    recipe = OMGSR_RECIPES[min(OMGSR_RECIPES, key=lambda known: abs(known - stride))]
    for ratio, step in zip(*recipe, strict=True):
        width = int(channels * ratio)
        convolution = spectral_norm(nn.Conv2d(channels, width, 3, stride=step, padding=1))
        layers += [BlurPool(channels, stride=2), convolution, nn.LeakyReLU(0.2)]
        channels = width
    layers += [BlurPool(channels, stride=2), spectral_norm(nn.Conv2d(channels, 1, 1))]
    return Head(*layers, smallest=_smallest(recipe[1]))


def _smallest(strides: tuple[int, ...]) -> int:
    """Least side that three BlurPools (n // 2), their convolutions (ceil of n / stride) and a last BlurPool
    leave something of."""
    side = 2
    for stride in reversed(strides):
        side = 2 * (stride * (side - 1) + 1)
    return side


HEADS: dict[str, Callable[[int, int], Head]] = {"vagan_conv": vagan_conv, "omgsr_conv": omgsr_conv}


def make_head(name: str, channels: int, stride: int) -> Head:
    """The head called `name` for features of `channels` channels, a cell of which is `stride` pixels wide."""
    if name not in HEADS:
        raise TrainingError(f"discriminator head {name!r} is not known; {', '.join(HEADS)} are")
    return HEADS[name](channels, stride)
