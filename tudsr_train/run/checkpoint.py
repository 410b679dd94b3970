"""Checkpoints of a run: folders `step-NNNNNN` that are whole or do not count.

    step-000500/
        generator.safetensors       what is trained of G: the LoRA, or for a base all of the UNet
        discriminator.safetensors   D's heads, with the vectors of their spectral norms; where there is a D
        optimizers.pt               one AdamW state per network
        state.json                  step, next batch, settings, hashes of what the run stands on
        COMMIT                      sha256 of each of the files above
    latest                          name of the newest one

A save writes a temporary folder, flushes it to disk, renames it, adds COMMIT, moves `latest`, and only then
drops the oldest. A folder without COMMIT, or one whose files do not match it, is no checkpoint. Random
numbers need no file: every draw of a run is seeded by (seed, number of the batch).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tudsr_runtime.atomic import atomic_dir, atomic_write
from tudsr_runtime.errors import TrainingError
from tudsr_runtime.files import file_sha256

STATE_FILE = "state.json"
OPTIMIZERS_FILE = "optimizers.pt"
COMMIT_FILE = "COMMIT"
LATEST_FILE = "latest"

POINTS = ("started", "written", "renamed", "committed", "pointed", "retired")
"""Moments of a save, in order. A process that dies at any of them loses at most one save interval."""

at_point: Callable[[str], None] = lambda _: None  # noqa: E731 - a test puts its own function here
"""Called at each of `POINTS`."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run between two optimizer steps, at the end of a picture."""

    step: int
    """Optimizer steps done."""
    next_batch: int
    """Number of the first batch that has not been seen; counted over all processes."""
    networks: dict[str, dict[str, Tensor]]
    """What is trained of each network, by its name and the tensor's."""
    optimizers: dict[str, Any]
    """`state_dict` of each network's optimizer."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration."""
    parents: dict[str, str] = field(default_factory=dict)
    """sha256 of what the run stands on: the base, the prompt and, in stage 2, the first adapter."""
    skipped: int = 0
    """Optimizer steps so far that were left out, their losses or gradients not being finite."""

    def first_not_finite(self) -> str | None:
        """Name of a tensor with NaN or infinity in it, or None."""
        for name, tensors in [*self.networks.items(), *self.optimizers.items()]:
            for key, tensor in _tensors(tensors, name):
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    return key
        return None


def _tensors(tree: Any, where: str) -> list[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        return [(where, tree)]
    if isinstance(tree, dict):
        return [found for key, value in tree.items() for found in _tensors(value, f"{where}.{key}")]
    return []


def save(folder: Path, checkpoint: Checkpoint, keep: int, keep_every: int = 0) -> Path:
    """Write a checkpoint below `folder` and keep the newest `keep`; returns its folder.

    Those whose step is a multiple of `keep_every` stay as well.

    Raises TrainingError, and writes nothing, where a value is NaN or infinite; OutputError where the disk
    refuses. Either way the checkpoints that are there stay.
    """
    poison = checkpoint.first_not_finite()
    if poison:
        raise TrainingError(
            f"step {checkpoint.step}: {poison} has values that are not finite; no checkpoint was written",
            hint="resume from the last one with a lower learning rate",
        )
    final = folder / f"step-{checkpoint.step:06d}"
    at_point("started")
    with atomic_dir(final, overwrite=True) as partial:
        _write(partial, checkpoint)
        at_point("written")
    at_point("renamed")
    commitment = json.dumps(_hashes(final), indent=2).encode()
    with atomic_write(final / COMMIT_FILE) as file:
        file.write(commitment)
    at_point("committed")
    with atomic_write(folder / LATEST_FILE) as file:
        file.write(f"{final.name}\n".encode())
    at_point("pointed")
    _retire(folder, keep, keep_every)
    at_point("retired")
    return final


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    for name, tensors in checkpoint.networks.items():
        contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(contiguous, folder / f"{name}.safetensors")
    torch.save(checkpoint.optimizers, folder / OPTIMIZERS_FILE)
    record = {
        key: value for key, value in _shallow(checkpoint).items() if key not in ("networks", "optimizers")
    }
    (folder / STATE_FILE).write_text(json.dumps(record, indent=2) + "\n")


def _shallow(checkpoint: Checkpoint) -> dict[str, Any]:
    return {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}


def _hashes(folder: Path) -> dict[str, str]:
    # a killed save may have left the temporary file that was to become COMMIT
    own = [path for path in folder.iterdir() if path.name != COMMIT_FILE and not path.name.startswith(".")]
    return {path.name: file_sha256(path) for path in sorted(own)}


def _retire(folder: Path, keep: int, keep_every: int) -> None:
    """Remove all but the newest `keep` checkpoints and the milestones, and what an interrupted save has left.

    Those of later steps, which a resume from an earlier one has abandoned, stay until they are overwritten.
    """
    now = _pointed(folder)
    past = [path for path in folders(folder) if now is None or path.name <= now.name]
    committed = [path for path in past if (path / COMMIT_FILE).is_file()]
    stay = {*committed[-keep:], *(path for path in committed if keep_every and _step(path) % keep_every == 0)}
    for path in past:
        if path not in stay:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".tudsr-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def folders(folder: Path) -> list[Path]:
    """All `step-NNNNNN` below a run's folder, oldest first, whole or not."""
    return sorted(folder.glob("step-[0-9]*")) if folder.is_dir() else []


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _pointed(folder: Path) -> Path | None:
    pointer = folder / LATEST_FILE
    return folder / pointer.read_text().strip() if pointer.is_file() else None


def newest(folder: Path, notify: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint that `latest` names, else the newest that is whole, or None.

    Those that are not whole are named and passed over.
    """
    pointed = _pointed(folder)
    rest = [path for path in reversed(folders(folder)) if path != pointed]
    for path in [pointed, *rest] if pointed else rest:
        try:
            return load(path)
        except TrainingError as error:
            notify(f"passed over: {error}")
    return None


def load(folder: Path) -> Checkpoint:
    """Read one checkpoint onto the CPU. TrainingError where it is not there, not whole or damaged."""
    try:
        expected = json.loads((folder / COMMIT_FILE).read_text())
    except FileNotFoundError as error:
        raise TrainingError(
            f"{folder}: no checkpoint here, or its save was interrupted ({COMMIT_FILE} is missing)"
        ) from error
    except ValueError as error:
        raise TrainingError(f"{folder}: the checkpoint is damaged: {COMMIT_FILE} is not JSON") from error
    wrong = [name for name, sha256 in _hashes(folder).items() if expected.pop(name, None) != sha256]
    if wrong or expected:
        raise TrainingError(f"{folder}: the checkpoint is damaged: {', '.join([*wrong, *expected])}")
    try:
        networks = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
        optimizers = torch.load(folder / OPTIMIZERS_FILE, weights_only=True, map_location="cpu")
        return Checkpoint(
            networks=networks, optimizers=optimizers, **json.loads((folder / STATE_FILE).read_text())
        )
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{folder}: the checkpoint cannot be read: {error}") from error
