"""`tudsr train base|stage1|stage2`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tudsr_runtime.errors import MemoryExhausted, TrainingError, UsageError

STAGES = ("base", "stage1", "stage2")


@dataclass(frozen=True)
class TrainOptions:
    """Options of `tudsr train`, besides the configuration."""

    overrides: list[str] = field(default_factory=list)
    """`key.sub=value`, applied to the file."""
    out: Path | None = None
    """Result folder; None takes the configuration's own `out`."""
    resume: str = "auto"
    """auto, never, or the folder of a checkpoint."""
    print_config: bool = False
    """Print the resolved configuration and stop."""
    check: bool = False
    """Read data and weights, go through one pair, print what was found, and stop."""


def run(stage: str, config: Path, options: TrainOptions) -> None:
    """Train one stage, by a YAML file of `BaseConfig`, `Stage1Config` or `Stage2Config`.

    Raises:
        UsageError: an unknown stage. TrainingError: a bad configuration or bad data. BundleError: base or
        adapter. DeviceError: no such device. MemoryExhausted: not enough of the GPU's memory.
    """
    if stage not in STAGES:
        raise UsageError(f"there is no stage {stage!r}; {', '.join(STAGES)} are known")
    with _memory_explained():
        _run(stage, config, options)


def _run(stage: str, path: Path, options: TrainOptions) -> None:
    from tudsr_train import base, stage1, stage2
    from tudsr_train.config import BaseConfig, Stage1Config, Stage2Config, StageConfig
    from tudsr_train.config_file import load_config, to_yaml
    from tudsr_train.session import Stage

    table: dict[str, tuple[type[StageConfig], Callable[[Any, Path], Stage[Any]]]] = {
        "base": (BaseConfig, base.Base),
        "stage1": (Stage1Config, stage1.Stage1),
        "stage2": (Stage2Config, stage2.Stage2),
    }
    kind, prepared = table[stage]
    config = load_config(kind, path, options.overrides)
    if options.print_config:
        sys.stdout.write(to_yaml(config))
        return
    run = prepared(config, _out(options.out, config.out))
    if options.check:
        sys.stdout.write("".join(f"{line}\n" for line in run.check()))
    else:
        run.run(options.resume)


def plot(run: Path, output: Path | None) -> None:
    """`tudsr train plot`. Raises as `tudsr_train.run.plot.plot`."""
    from tudsr_train.run.plot import plot as draw

    sys.stdout.write(f"{draw(run, output)}\n")


@contextmanager
def _memory_explained() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryExhausted(
            f"the GPU's memory does not suffice: {str(error).splitlines()[0]}",
            hint="--set optimization.gradient_checkpointing=true, or optimizer: adamw8bit, or a smaller R",
        ) from error


def _out(given: Path | None, configured: str) -> Path:
    if given is None and not configured:
        raise TrainingError("no result folder", hint="give --out DIR, or set `out:` in the configuration")
    return given or Path(configured)
