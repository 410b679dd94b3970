"""`tudsr train base|stage1|stage2|decoder|pairs|plot`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tudsr_runtime.errors import MemoryExhausted, TrainingError, UsageError
from tudsr_train.options import PairsOptions, TrainOptions

C = TypeVar("C")
STAGES = ("base", "stage1", "stage2", "decoder")


def run(stage: str, options: TrainOptions) -> None:
    """Train one stage, by a YAML file of `BaseConfig`, `Stage1Config`, `Stage2Config` or `DecoderConfig`, or
    a shipped one's name (`find_config`).

    Raises:
        UsageError: an unknown stage. TrainingError: a bad configuration or bad data. BundleError: base or
        adapter. OutputError: the result would replace what no run beside it has made. DeviceError: no such
        device. MemoryExhausted: not enough of the GPU's memory.
    """
    if stage not in STAGES:
        raise UsageError(f"there is no stage {stage!r}; {', '.join(STAGES)} are known")
    with _memory_explained():
        _run(stage, options)


def _run(stage: str, options: TrainOptions) -> None:
    from tudsr_train import base, decoder, stage1, stage2
    from tudsr_train.config import BaseConfig, DecoderConfig, Stage1Config, Stage2Config, StageConfig
    from tudsr_train.training import Training

    table: dict[str, tuple[type[StageConfig], Callable[[Any, Path, bool], Training[Any]]]] = {
        "base": (BaseConfig, base.Base),
        "stage1": (Stage1Config, stage1.Stage1),
        "stage2": (Stage2Config, stage2.Stage2),
        "decoder": (DecoderConfig, decoder.LightDecoding),
    }
    kind, prepared = table[stage]
    config = _configured(kind, options)
    if config is None:
        return
    run = prepared(config, _out(options.out, config.out), options.overwrite)
    if options.check:
        sys.stdout.write("".join(f"{line}\n" for line in run.check()))
    else:
        run.run(options.resume)


def pairs(options: PairsOptions) -> None:
    """`tudsr train pairs`, by a YAML file of `PairsConfig`. Raises as `tudsr_train.teacher.make_pairs`."""
    from tudsr_train.config import PairsConfig
    from tudsr_train.teacher import make_pairs

    config = _configured(PairsConfig, options)
    if config is not None:
        sys.stdout.write(f"{make_pairs(config, _out(options.out, config.out))}\n")


def _configured(kind: type[C], options: TrainOptions | PairsOptions) -> C | None:
    """The configuration that is asked for; None where it is only to be printed, which is done then."""
    from tudsr_train.config_file import find_config, load_config, to_yaml

    path, said = find_config(options.config)
    sys.stderr.write(f"{said}\n" if said else "")
    config = load_config(kind, path, options.overrides)
    if not options.print_config:
        return config
    sys.stdout.write(to_yaml(config))
    return None


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
