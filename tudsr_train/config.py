"""Settings of a training run: YAML files, typed, checked, with overrides; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tudsr_runtime.errors import TrainingError
from tudsr_train.adapters import TARGET_LISTS
from tudsr_train.data import Softness, Synthetic
from tudsr_train.degradation import Degradation
from tudsr_train.losses import LossWeights
from tudsr_train.nano import NanoBase
from tudsr_train.real_esrgan import RealESRGAN
from tudsr_train.sources import PRESETS, Data, Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Optimization:
    """AdamW and its schedule (paper section 4.1 where it says so)."""

    steps: int = 5100
    """Optimizer steps."""
    batch_size: int = 1
    """Images per micro-step."""
    accumulation: int = 4
    """Micro-steps per optimizer step; in stage 2 a chunk counts as one."""
    lr: float = 5e-5
    schedule: str = "constant"
    """constant, or cosine (down to 1 % of lr)."""
    warmup: int = 0
    """Optimizer steps of linear warm-up."""
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    precision: str = "bf16"
    """bf16 (autocast, float32 weights) or fp32."""
    compile: bool = False
    """torch.compile the UNet: a minute to start, then faster."""
    threads: int = 0
    """CPU threads; 0 leaves torch's choice."""
    workers: int = 1
    """Processes that prepare pairs."""
    save_every: int = 500
    log_every: int = 50


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (training is of nothing else)."""

    rank: int = 32
    """Of the UNet's, with alpha = rank. Paper 4.1."""
    targets: str = "standard"
    """Layers of the UNet: standard (OMGSR's list) or long (OSEDiff's); the paper names none."""
    vae_encoder_rank: int = 0
    """Of a LoRA on the VAE encoder; 0 for none, as in the paper. OMGSR has 16, OSEDiff 4."""

    def __post_init__(self) -> None:
        if self.targets not in TARGET_LISTS:
            raise TrainingError(f"lora.targets is {self.targets!r}; {' and '.join(TARGET_LISTS)} are known")

    @property
    def target_modules(self) -> tuple[str, ...]:
        return TARGET_LISTS[self.targets]


@dataclass(frozen=True)
class BaseConfig:
    """`tudsr train base`: every UNet weight, from nothing, through Eq. (2)."""

    out: str = ""
    seed: int = 0
    R: int = 192
    """Side of a training picture, pixels."""
    model: NanoBase = field(default_factory=NanoBase)
    data: Synthetic = field(default_factory=Synthetic)
    softness: Softness = field(default_factory=Softness)
    degradation: Degradation = field(default_factory=Degradation)
    mild: Degradation = field(
        default_factory=lambda: Degradation(
            blur_sigma=(0.3, 1.4), sharpen_prob=0.0, noise_sigma=(0.0, 0.004), jpeg_prob=0.0
        )
    )
    """What the restorer at t_2 sees: blur, but next to no noise, as behind a first stage."""
    t1: int = 200
    t2: int = 50
    t2_prob: float = 0.3
    """Share of steps at t_2."""
    M: tuple[int, ...] = (2, 4)
    N: int = 2
    loss: LossWeights = field(default_factory=LossWeights)
    optimization: Optimization = field(default_factory=Optimization)


@dataclass(frozen=True)
class Stage1Config:
    """`tudsr train stage1`: Algorithm 1."""

    base: str = ""
    out: str = ""
    seed: int = 0
    R: int = 512
    M: tuple[int, ...] = (4,)
    """Upsampling factors that training pairs are drawn from."""
    t1: int = 200
    lora: Lora = field(default_factory=Lora)
    data: Data = field(default_factory=Data)
    softness: Softness = field(default_factory=Softness)
    degradation: Recipe = field(default_factory=RealESRGAN)
    loss: LossWeights = field(default_factory=LossWeights)
    optimization: Optimization = field(default_factory=Optimization)


@dataclass(frozen=True)
class Stage2Config:
    """`tudsr train stage2`: Algorithm 2."""

    base: str = ""
    stage1: str = ""
    """Folder of the stage-1 adapter, frozen here."""
    out: str = ""
    seed: int = 0
    R: int = 512
    M: tuple[int, ...] = (4,)
    N: int = 2
    t2: int = 50
    lora: Lora = field(default_factory=Lora)
    data: Data = field(default_factory=Data)
    softness: Softness = field(default_factory=Softness)
    degradation: Recipe = field(default_factory=RealESRGAN)
    loss: LossWeights = field(default_factory=LossWeights)
    optimization: Optimization = field(default_factory=lambda: Optimization(steps=3500))


def load_config(kind: type[T], path: Path, overrides: list[str]) -> T:
    """Read a YAML file into `kind`, then apply `key.sub=value` overrides.

    Raises TrainingError (exit 10) for a missing file, an unknown key (naming the nearest known one) or a
    wrong type.
    """
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: no such config file") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"{path}: not a readable YAML file: {str(error).splitlines()[0]}") from error
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise TrainingError(f"--set {override}: expected key=value")
        _assign(tree, key.strip().split("."), yaml.safe_load(value))
    return _build(kind, tree, str(path))


def _assign(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value


def _build(kind: type[T], tree: Any, where: str) -> T:
    return kind(**_values(kind, tree, where))


def _values(kind: type, tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise TrainingError(f"{where}: expected keys and values, found {tree!r}")
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            raise TrainingError(
                f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return {key: _convert(hints[key], value, f"{where}: {key}") for key, value in tree.items()}


def _recipe(tree: Any, where: str) -> Recipe:
    """A degradation: the name of a preset, or `preset: NAME` and the values that differ from it."""
    tree = {"preset": tree} if isinstance(tree, str) else tree
    name = tree.get("preset", "realesrgan") if isinstance(tree, dict) else ""
    if name not in PRESETS:
        raise TrainingError(f"{where} must name a preset ({', '.join(PRESETS)}), not {name or tree!r}")
    preset = PRESETS[name]
    return dataclasses.replace(preset, **_values(type(preset), tree, where))


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint == Recipe:
        return _recipe(value, where)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    if typing.get_origin(hint) is tuple:
        return _convert_tuple(typing.get_args(hint), value, where)
    if isinstance(hint, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TrainingError(f"{where} must be of type {hint.__name__}, not {value!r}")
    return value


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if args == (str, ...) and isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise TrainingError(f"{where} must be a list, not {value!r}")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise TrainingError(f"{where} must have {len(args)} values, not {len(value)}")
    return tuple(
        _convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True))
    )
