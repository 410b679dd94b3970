"""DiffAugment (Zhao et al. 2020): what happens to pictures before a discriminator sees them.

Real and generated pictures are changed alike and differentiably, so that D cannot learn the training set by
heart, and G cannot learn the changes. Draws are independent for every picture and every call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tudsr_runtime.errors import TrainingError

TRANSLATION = 0.125
CUTOUT = 0.5
POLICIES = ("color", "translation", "cutout")


def policies(text: str) -> tuple[str, ...]:
    """The names in a comma-separated policy; empty text is none of them."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in POLICIES:
            raise TrainingError(f"DiffAugment policy {name!r} is not known; {', '.join(POLICIES)} are")
    return names


def diff_augment(x: Tensor, names: tuple[str, ...], generator: torch.Generator | None = None) -> Tensor:
    """Change (B, C, H, W) by the named policies, in their order.

    color: brightness +-0.5, saturation x [0, 2], contrast x [0.5, 1.5]. translation: by up to 1/8 of each
    side, zeros come in. cutout: a window of half of each side is zero.
    """
    changes = {"color": _color, "translation": _translation, "cutout": _cutout}
    for name in names:
        x = changes[name](x, generator)
    return x


def _uniform(x: Tensor, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    """(B, 1, 1, 1) on x's device, drawn where the generator lives."""
    device = generator.device if generator else x.device
    draw = torch.rand(len(x), 1, 1, 1, generator=generator, device=device, dtype=x.dtype)
    return low + (high - low) * draw.to(x.device)


def _color(x: Tensor, generator: torch.Generator | None) -> Tensor:
    x = x + _uniform(x, -0.5, 0.5, generator)
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * _uniform(x, 0.0, 2.0, generator)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * _uniform(x, 0.5, 1.5, generator)


def _translation(x: Tensor, generator: torch.Generator | None) -> Tensor:
    for axis in (2, 3):
        side = x.shape[axis]
        most = int(side * TRANSLATION + 0.5)
        shift = _whole(_uniform(x, -most, most + 1, generator), -most, most)
        source = _positions(x, axis) - shift
        inside = (source >= 0) & (source < side)
        x = x.gather(axis, source.clamp(0, side - 1).expand_as(x)) * inside
    return x


def _cutout(x: Tensor, generator: torch.Generator | None) -> Tensor:
    hidden = torch.ones(1, dtype=torch.bool, device=x.device)
    for axis in (2, 3):
        side = x.shape[axis]
        length = int(side * CUTOUT + 0.5)
        # The centre is anywhere in the picture, so that the window may reach over its border.
        last = side - length % 2
        start = _whole(_uniform(x, 0, last + 1, generator), 0, last) - length // 2
        position = _positions(x, axis)
        hidden = hidden & (position >= start) & (position < start + length)
    return x * ~hidden


def _whole(x: Tensor, low: int, high: int) -> Tensor:
    return x.floor().long().clamp(low, high)


def _positions(x: Tensor, axis: int) -> Tensor:
    shape = [1] * x.dim()
    shape[axis] = -1
    return torch.arange(x.shape[axis], device=x.device).view(shape)
