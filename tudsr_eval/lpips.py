"""LPIPS (Zhang et al. 2018) on AlexNet, version 0.1, from local weights: no torchvision, no download."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tudsr_runtime.errors import BundleError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

CONVOLUTIONS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))
"""Number in torchvision's `features`, stride and padding; a pooling stands before the second and third."""
POOLED = (3, 6)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""LPIPS' own normalisation of pictures in [-1, 1]."""
HEADS = {"lpips": "weights/v0.1/alex.pth", "torchmetrics": "functional/image/lpips_models/alex.pth"}
"""Packages that carry the linear heads, and where; neither is imported."""
ALEXNET_HINT = "--alexnet alexnet-owt-7be5be79.pth, from https://download.pytorch.org/models/"


def load_lpips(alexnet: str | None, heads: str | None) -> Callable[[Tensor, Tensor], list[float]]:
    """The distances of pictures (n, 3, h, w) from a reference (1, 3, h, w), in [0, 1]; 0 for equal ones.

    Raises:
        UsageError: AlexNet's weights are not named.
        BundleError: weights are absent or not what they should be.
    """
    if alexnet is None:
        raise UsageError("LPIPS needs the weights of AlexNet", hint=ALEXNET_HINT)
    backbone = _state(alexnet, ALEXNET_HINT)
    linear = _state(heads or str(_installed_heads()), "--lpips alex.pth of the package lpips 0.1.4")
    names = [f"features.{number}.{key}" for number, *_ in CONVOLUTIONS for key in ("weight", "bias")]
    _require(backbone, names, alexnet)
    _require(linear, [f"lin{i}.model.1.weight" for i in range(5)], heads or "LPIPS' heads")
    return lambda x, y: _distances(backbone, linear, x, y)


def _distances(backbone: dict[str, Tensor], linear: dict[str, Tensor], x: Tensor, y: Tensor) -> list[float]:
    import torch

    with torch.no_grad():
        total = x.new_zeros(len(x))
        for stage, (f, g) in enumerate(zip(_features(backbone, x), _features(backbone, y), strict=True)):
            squares = (_unit(f) - _unit(g)).square()
            total += (squares * linear[f"lin{stage}.model.1.weight"]).sum(1).mean((1, 2))
    return [float(value) for value in total]


def _features(backbone: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Feature maps after each of the five ReLUs."""
    import torch.nn.functional as F

    shift, scale = (x.new_tensor(of).view(1, 3, 1, 1) for of in (SHIFT, SCALE))
    h, maps = (x * 2 - 1 - shift) / scale, []
    for number, stride, padding in CONVOLUTIONS:
        if number in POOLED:
            h = F.max_pool2d(h, 3, 2)
        weight, bias = (backbone[f"features.{number}.{key}"] for key in ("weight", "bias"))
        h = F.relu(F.conv2d(h, weight, bias, stride, padding))
        maps.append(h)
    return maps


def _unit(f: Tensor) -> Tensor:
    """Each position's channels at length 1."""
    return f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _state(source: str, hint: str) -> dict[str, Tensor]:
    """Named tensors of a .pth or .safetensors file, in float32."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(source).expanduser()
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise BundleError(f"{source}: no such file", hint=hint) from error
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, SafetensorError) as error:
        raise BundleError(f"{source}: cannot be read: {str(error).splitlines()[0]}", hint=hint) from error
    return {name: tensor.float() for name, tensor in state.items()}


def _require(state: dict[str, Tensor], names: list[str], source: str) -> None:
    absent = [name for name in names if name not in state]
    if absent:
        raise BundleError(f"{source}: {len(absent)} weights are missing, first {absent[0]}")


def _installed_heads() -> Path:
    for package, below in HEADS.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / below).is_file():
                return Path(folder) / below
    raise BundleError(
        "LPIPS' linear heads are not there",
        hint="--lpips alex.pth, or pip install --no-deps lpips (6 kB of weights lie inside)",
    )
