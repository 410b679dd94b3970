"""`tudsr train base|stage1|stage2`."""

from __future__ import annotations

from pathlib import Path

from tudsr_runtime.errors import TrainingError, UsageError

STAGES = ("base", "stage1", "stage2")


def run(stage: str, config: Path, overrides: list[str], out: Path | None, resume: str) -> None:
    """Train one stage.

    Args:
        stage: base, stage1 or stage2.
        config: YAML file of `BaseConfig`, `Stage1Config` or `Stage2Config` (`tudsr_train.config`).
        overrides: `key.sub=value`, applied to the file.
        out: result folder; None takes the configuration's own `out`.
        resume: auto, never, or the folder of a checkpoint.

    Raises:
        UsageError: an unknown stage. TrainingError: a bad configuration or bad data. BundleError: base or
        adapter.
    """
    from tudsr_train.base import train_base
    from tudsr_train.config import BaseConfig, Stage1Config, Stage2Config, load_config
    from tudsr_train.stage1 import train_stage1
    from tudsr_train.stage2 import train_stage2

    if stage == "base":
        base_config = load_config(BaseConfig, config, overrides)
        train_base(base_config, _out(out, base_config.out), resume)
    elif stage == "stage1":
        stage1_config = load_config(Stage1Config, config, overrides)
        train_stage1(stage1_config, _out(out, stage1_config.out), resume)
    elif stage == "stage2":
        stage2_config = load_config(Stage2Config, config, overrides)
        train_stage2(stage2_config, _out(out, stage2_config.out), resume)
    else:
        raise UsageError(f"there is no stage {stage!r}; {', '.join(STAGES)} are known")


def _out(given: Path | None, configured: str) -> Path:
    if given is None and not configured:
        raise TrainingError("no result folder", hint="give --out DIR, or set `out:` in the configuration")
    return given or Path(configured)
