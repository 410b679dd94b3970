"""VGG16's convolutions (Simonyan and Zisserman 2015), pretrained: eyes of EA-DISTS and a discriminator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tudsr_runtime.errors import TrainingError
from tudsr_train.foreign import misread

RANDOM = "random"
"""Stands for weights: an untrained network, for tests and toys. Never chosen unless asked for."""
VGG16 = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Numbers of VGG16's convolutions in torchvision's `features`, by stage."""
VGG16_WIDTHS = (64, 128, 256, 512, 512)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the channels of pictures in [0, 1], to which VGG16 is used."""


def vgg16_stages(weights: dict[str, Tensor], count: int = len(VGG16)) -> nn.ModuleList:
    """The convolutions of the first `count` stages, a list each, with weights of torchvision's names."""
    stages = _stages()[:count]
    for numbers, stage in zip(VGG16, stages, strict=False):
        for number, convolution in zip(numbers, stage, strict=True):
            names = {key: f"features.{number}.{key}" for key in ("weight", "bias")}
            convolution.load_state_dict({key: weights[name].float() for key, name in names.items()})
    return nn.ModuleList(stages)


def _stages() -> list[nn.ModuleList]:
    stages, width = [], 3
    for numbers, out in zip(VGG16, VGG16_WIDTHS, strict=True):
        widths = (width, *(out,) * (len(numbers) - 1))
        stages.append(nn.ModuleList(nn.Conv2d(into, out, 3, padding=1) for into in widths))
        width = out
    return stages


def load_vgg16(source: str) -> dict[str, Tensor]:
    """VGG16's convolutions by torchvision's names: from a file, from a hub id, or drawn for `random`."""
    if source == RANDOM:
        with the_same_draws():
            return _random_vgg16()
    state = read_tensors(_vgg16_file(source))
    names = [f"features.{n}.{key}" for stage in VGG16 for n in stage for key in ("weight", "bias")]
    absent = [name for name in names if name not in state]
    if absent:
        raise TrainingError(
            f"{source}: not VGG16 weights with torchvision's names: {len(absent)} are missing, "
            f"first {absent[0]}"
        )
    return {name: state[name] for name in names}


@contextlib.contextmanager
def the_same_draws() -> Iterator[None]:
    """Draw the same in every process and after every resume: the loss must not change under a run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _random_vgg16() -> dict[str, Tensor]:
    state = {}
    for numbers, stage in zip(VGG16, _stages(), strict=True):
        for number, convolution in zip(numbers, stage, strict=True):
            weight = nn.init.kaiming_normal_(
                convolution.get_parameter("weight").detach(), nonlinearity="relu"
            )
            state[f"features.{number}.weight"] = weight
            state[f"features.{number}.bias"] = torch.zeros(len(weight))
    return state


def _vgg16_file(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    hint = (
        "set `dists.vgg16` to torchvision's vgg16-397923af.pth "
        "(https://download.pytorch.org/models/vgg16-397923af.pth), or to the hub id timm/vgg16.tv_in1k"
    )
    if path.suffix or source.count("/") != 1:
        raise TrainingError(f"{source}: no such file of VGG16 weights", hint=hint)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, "model.safetensors"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"no VGG16 weights at {source}: {str(error).splitlines()[0]}", hint=hint
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or torch file by name; TrainingError where it cannot be read."""
    if not path.is_file():
        raise TrainingError(f"{path}: no such file")
    with misread(f"{path}: cannot be read", TrainingError, hint="the file as its publisher has it"):
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = dict(torch.load(path, map_location="cpu", weights_only=True))
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            raise ValueError("it holds more than tensors")
    return tensors
