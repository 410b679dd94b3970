"""DISTS, the structural distance of Eq. (5) (Ding et al. 2020, "Unifying Structure and Texture Similarity").

VGG16's feature maps and the picture itself are compared channel by channel: their means (texture) and their
covariance (structure), weighted by learned alpha and beta. Max pooling is replaced by a blurred L2 pooling.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tudsr_runtime.errors import TrainingError
from tudsr_train.vgg16 import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RANDOM,
    VGG16_WIDTHS,
    load_vgg16,
    read_tensors,
    the_same_draws,
    vgg16_stages,
)

CHANNELS = (3, *VGG16_WIDTHS)
C1 = C2 = 1e-6


@dataclass(frozen=True)
class DistsConfig:
    """Where EA-DISTS takes its two sets of weights from."""

    vgg16: str = "timm/vgg16.tv_in1k"
    """VGG16 trained on ImageNet, as DISTS was made for: a .pth or .safetensors file with torchvision's names,
    or a hub id (torchvision's own weights, republished); `random` for tests and toys."""
    weights: str = ""
    """DISTS' alpha and beta: its authors' weights.pt; empty takes the file in an installed DISTS-pytorch;
    `random` for tests and toys."""
    averaged: bool = False
    """Average alpha and beta within each stage: right for a VGG16 other than torchvision's, whose channels
    are others, such as that of an edge detector."""
    precision: str = "fp32"
    """What VGG16's convolutions compute in, fp32 or bf16; pooling and statistics are float32 in both. On an
    AMD EPYC with AVX512-BF16 it halves the time, and the gradient keeps its direction (cosine 0.99)."""

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise TrainingError(f"dists: precision {self.precision!r} is not known; fp32 and bf16 are")


class DISTS(nn.Module):
    """Distance of pictures, 0 for equal ones: two (B, 3, H, W) or (B, 1, H, W) in [0, 1] to (B,).

    A single channel counts as three equal ones. Frozen, and of its own precision also under autocast
    (in bfloat16 throughout the value moves by 4 %); gradients reach the pictures.

    Args:
        vgg16: convolutions of VGG16, torchvision's names.
        alpha, beta: 1475 weights each, of means and of covariances.
        precision: of the convolutions, fp32 or bf16.
    """

    alpha: Tensor
    beta: Tensor
    mean: Tensor
    std: Tensor
    blur: Tensor

    def __init__(
        self, vgg16: dict[str, Tensor], alpha: Tensor, beta: Tensor, precision: str = "fp32"
    ) -> None:
        super().__init__()
        self.in_bf16 = precision == "bf16"
        self.stages = vgg16_stages(vgg16)
        total = alpha.sum() + beta.sum()
        taps = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("alpha", alpha.detach().float().flatten() / total.detach().float())
        self.register_buffer("beta", beta.detach().float().flatten() / total.detach().float())
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.register_buffer("blur", torch.outer(taps, taps)[None, None])
        self.requires_grad_(False)

    @classmethod
    def load(cls, config: DistsConfig) -> DISTS:
        """TrainingError, saying where to get them, where weights are absent."""
        alpha, beta = load_alpha_beta(config.weights)
        if config.averaged:
            alpha, beta = average_per_stage(alpha), average_per_stage(beta)
        return cls(load_vgg16(config.vgg16), alpha, beta, config.precision)

    def features(self, x: Tensor) -> list[Tensor]:
        """The picture as it is, then relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""
        maps, h = [x], (x - self.mean) / self.std
        for number, stage in enumerate(self.stages):
            if number:
                h = self._l2_pool(h)
            with torch.autocast(h.device.type, torch.bfloat16, enabled=self.in_bf16):
                for convolution in stage.children():
                    h = F.relu(convolution(h))
            h = h.to(x.dtype)
            maps.append(h)
        return maps

    def _l2_pool(self, h: Tensor) -> Tensor:
        weight = self.blur.expand(h.shape[1], -1, -1, -1)
        return (F.conv2d(h.square(), weight, stride=2, padding=1, groups=h.shape[1]) + 1e-12).sqrt()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x, y = x.to(self.mean.dtype), y.to(self.mean.dtype)
            similarity = x.new_zeros(len(x))
            weights = zip(self.alpha.split(CHANNELS), self.beta.split(CHANNELS), strict=True)
            for f_x, f_y, (alpha, beta) in zip(self.features(x), self.features(y), weights, strict=True):
                texture, structure = _similarities(f_x, f_y)
                similarity = similarity + (alpha * texture + beta * structure).sum(1)
            return 1 - similarity


def _similarities(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities of means and of covariances, (B, C) each, of feature maps (B, C, h, w)."""
    mean_x, mean_y = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
    texture = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
    apart_x, apart_y = x - mean_x, y - mean_y
    covariance = (apart_x * apart_y).mean((2, 3))
    variances = apart_x.square().mean((2, 3)) + apart_y.square().mean((2, 3))
    return texture.flatten(1), (2 * covariance + C2) / (variances + C2)


def average_per_stage(weights: Tensor) -> Tensor:
    """1475 weights, each the mean of its stage's, so that no channel is told from another."""
    return torch.cat([part.mean().expand(len(part)) for part in weights.flatten().split(CHANNELS)])


def load_alpha_beta(source: str) -> tuple[Tensor, Tensor]:
    """DISTS' alpha and beta, 1475 each, from a file, an installed DISTS-pytorch, or drawn as untrained."""
    if source == RANDOM:
        with the_same_draws():
            drawn = torch.empty(2, sum(CHANNELS)).normal_(0.1, 0.01)
        return drawn[0], drawn[1]
    path = Path(source).expanduser() if source else _installed_weights()
    state = read_tensors(path)
    try:
        alpha, beta = state["alpha"].flatten(), state["beta"].flatten()
    except KeyError as error:
        raise TrainingError(f"{path}: not DISTS' weights ({error} is missing)") from error
    if len(alpha) != sum(CHANNELS) or len(beta) != sum(CHANNELS):
        raise TrainingError(f"{path}: {len(alpha)} and {len(beta)} weights where DISTS has {sum(CHANNELS)}")
    return alpha, beta


def _installed_weights() -> Path:
    """The file inside an installed DISTS-pytorch, which is not imported: that would need torchvision."""
    spec = importlib.util.find_spec("DISTS_pytorch")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (Path(folder) / "weights.pt").is_file():
            return Path(folder) / "weights.pt"
    raise TrainingError(
        "DISTS' weights (alpha and beta) are not there",
        hint="pip install --no-deps DISTS-pytorch, or set `dists.weights` to weights.pt of "
        "https://github.com/dingkeyan93/DISTS",
    )
