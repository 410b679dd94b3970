"""An autoencoder that passes the picture through and adds to it what a backbone's features say.

A latent cell holds a patch of pixels, as in `PatchAutoencoder` but by its cosine transform, and beside it
feature channels, which the encoder leaves at zero and the backbone fills. The decoder enlarges the features
in steps of two, bilinearly and by convolutions, looks at the pixels again at full size, and adds a
residual to them. No colour is written straight from a cell: a decoder that did (pixel shuffle, transposed
convolution) lets adversarial gradients draw a grid of the cells' period (Odena et al. 2016).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from tudsr_train.bases.patch_autoencoder import PatchDecoding, PatchDistribution, PatchEncoding

SLOPE = 0.2
"""Negative slope of the leaky rectifiers, as in Real-ESRGAN's upsampling."""


LARGEST_GAIN = 20.0


def patch_basis(patch_size: int) -> tuple[Tensor, Tensor]:
    """Analysis (3 p^2, 3 p^2) of a patch's pixels, in the order of pixel unshuffle, and its inverse.

    Cosines (DCT-II) of brightness and two colour differences, each times a gain that brings it to about the
    size of the others: in enlarged pictures what matters most, fine detail, is a hundredth of the rest, and a
    backbone that is fed plain pixels takes half as many steps again to find it.
    """
    n = torch.arange(patch_size, dtype=torch.float64)
    cosines = (torch.pi / patch_size * (n + 0.5) * n[:, None]).cos() * (2 / patch_size) ** 0.5
    cosines[0] /= 2**0.5
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    order = (n + n[:, None]).flatten()
    gains = torch.where(order == 0, 1 / patch_size, 4 * order**2)
    gains = (torch.tensor([[1.0], [3.0], [3.0]]) * gains).clamp(max=LARGEST_GAIN).flatten()
    transform = torch.kron(colours, torch.kron(cosines, cosines))  # orthonormal
    return (gains[:, None] * transform).float(), (transform.T / gains).float()


def _exactly(x: Tensor, matrix: Tensor) -> Tensor:
    """A 1 x 1 convolution that autocast leaves alone: it carries pixels."""
    if not torch.is_autocast_enabled(x.device.type):
        return F.conv2d(x, matrix)
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(x.to(matrix.dtype), matrix)


class FeatureAutoencoder(ModelMixin, ConfigMixin):
    """Pixels and features behind the interface of `AutoencoderKL`; the encoder has no weights.

    `encode(image (B, 3, H, W))` has `.latent_dist.mode()` of shape (B, 3 p^2 + k, (H + 2 m) / p,
    (W + 2 m) / p): patches of p = `patch_size` by `patch_basis`, then k = `feature_channels` zeros. `decode`
    gives the pixels back from the first 3 p^2 channels, plus the residual that the decoder makes of the
    others; untrained it is the inverse of `encode`. H and W must be multiples of p and larger than `margin`
    m: m pixels are reflected around the image and cut off again.

    Args:
        widths: channels of the decoder at cells and after each doubling, log2(p) + 1 in all.
        feature_gain: what features are multiplied by: Eq. (2) with next to no noise leaves them that small.
    """

    config_name = "config.json"
    analysis: Tensor
    synthesis: Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        patch_size: int = 4,
        feature_channels: int = 48,
        widths: tuple[int, ...] = (48, 32, 16),
        feature_gain: float = 1.0,  # noqa: ARG002 - kept in the config
        scaling_factor: float = 1.0,  # noqa: ARG002 - kept in the config, where `Generator` reads it
        latent_channels: int = 96,
        margin: int = 0,
    ) -> None:
        super().__init__()
        if margin % patch_size:
            raise ValueError(f"margin {margin} is no multiple of the patch size {patch_size}")
        if latent_channels != 3 * patch_size**2 + feature_channels:
            raise ValueError(
                f"patches of {patch_size} x {patch_size} RGB pixels and {feature_channels} features have "
                f"{3 * patch_size**2 + feature_channels} channels, but latent_channels is {latent_channels}"
            )
        if patch_size != 2 ** (len(widths) - 1):
            raise ValueError(
                f"{len(widths)} widths reach {2 ** (len(widths) - 1)} x, the patch size is {patch_size}"
            )
        for name, matrix in zip(("analysis", "synthesis"), patch_basis(patch_size), strict=True):
            self.register_buffer(name, matrix[..., None, None])
        steps = zip((feature_channels, *widths), widths, strict=False)
        self.enlarging = nn.ModuleList(nn.Conv2d(into, out, 3, padding=1) for into, out in steps)
        self.looking = nn.Conv2d(widths[-1] + 3, widths[-1], 3, padding=1)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)
        for convolution in (*self.enlarging, self.looking):
            # with torch's own draws the signal all but dies on the way to `conv_out`, and learning with it
            nn.init.kaiming_normal_(convolution.weight, a=SLOPE)
            nn.init.zeros_(convolution.get_parameter("bias"))
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.get_parameter("bias"))

    @property
    def pixel_channels(self) -> int:
        """How many channels of the latent are pixels; they come first."""
        return 3 * self.config.patch_size**2

    def encode(self, x: Tensor) -> PatchEncoding:
        if self.config.margin:
            x = F.pad(x, (self.config.margin,) * 4, mode="reflect")
        pixels = _exactly(F.pixel_unshuffle(x, self.config.patch_size), self.analysis)
        empty = (0, 0, 0, 0, 0, self.config.feature_channels)
        return PatchEncoding(PatchDistribution(F.pad(pixels, empty)))

    def decode(self, z: Tensor) -> PatchDecoding:
        pixels = _exactly(z[:, : self.pixel_channels], self.synthesis)
        pixels = F.pixel_shuffle(pixels, self.config.patch_size)
        x = pixels + self._residual(z[:, self.pixel_channels :] * self.config.feature_gain, pixels)
        margin = self.config.margin
        return PatchDecoding(x[..., margin : x.shape[-2] - margin, margin : x.shape[-1] - margin])

    def _residual(self, h: Tensor, pixels: Tensor) -> Tensor:
        for number, convolution in enumerate(self.enlarging):
            if number:
                h = F.interpolate(h, scale_factor=2.0, mode="bilinear")
            h = F.leaky_relu(convolution(h), SLOPE)
        h = F.leaky_relu(self.looking(torch.cat([h, pixels.to(h.dtype)], dim=1)), SLOPE)
        residual: Tensor = self.conv_out(h)
        return residual
