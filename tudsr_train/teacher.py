"""`tudsr train pairs`: what another restorer makes of degraded crops, kept as pairs to learn from.

A photograph is one of many that a small picture may have come from, and a small network that is told to meet
it draws their mean. A teacher has decided: its picture follows from the small one. It runs ahead of time,
once, through the runtime, and its pairs are read as any others (`source: paired`).
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.errors import OutputError
from tudsr_runtime.files import make_folder
from tudsr_runtime.typed import parse_json
from tudsr_runtime.upscaler import Upscaler
from tudsr_train.config import PairsConfig
from tudsr_train.config_file import to_tree
from tudsr_train.data.pairs import Task
from tudsr_train.data.sources import Notify, to_stderr, training_pairs

RECORD_FILE = "pairs.json"
SAY_EVERY = 50
UNIMPORTANT = ("out", "teacher", "count", "threads")
"""Settings that no pair depends on, but for the teacher, which its hash stands for."""
Pixels = NDArray[np.uint8]


def make_pairs(config: PairsConfig, out: Path, say: Notify = to_stderr) -> Path:
    """Write `out`/LR/NNNNNN.png, degraded crops, and `out`/HR/NNNNNN.png, the teacher's pictures of them.

    A pair is of its number and the configuration alone. Pairs that are there already are kept, so that the
    same call goes on where one was stopped. `out`/pairs.json says what made them, the teacher's licence
    included.

    Raises:
        OutputError: `out` holds pairs of other settings, or cannot be written.
        DataError: no pictures, or too many damaged ones. BundleError, DeviceError: the teacher.
    """
    task = Task(config.side, (config.scale,), config.side // config.scale)
    threads = config.threads or None
    with Upscaler(config.teacher, threads=threads, color="none", sanity=False, notify=say) as teacher:
        for folder in ("LR", "HR"):
            make_folder(out / folder)
        _keep_record(config, teacher, out / RECORD_FILE)
        todo = [number for number in range(config.count) if not _file(out, "HR", number).is_file()]
        say(f"{config.count} pairs, {config.count - len(todo)} of them there already; {teacher.choice}")
        pairs = training_pairs(
            config.data, task, config.softness, config.degradation, config.seed, config.count, out, say
        )
        for done, number in enumerate(todo, 1):
            low = _levels(pairs[number][0])
            _save(low, _file(out, "LR", number))
            _save(teacher.upscale(low, scale=config.scale), _file(out, "HR", number))
            if done % SAY_EVERY == 0 or done == len(todo):
                say(f"{done}/{len(todo)} pairs")
    return out


def _keep_record(config: PairsConfig, teacher: Upscaler, path: Path) -> None:
    """Say what makes the pairs, or refuse a folder whose pairs something else has made."""
    settings = {key: value for key, value in to_tree(config).items() if key not in UNIMPORTANT}
    manifest = teacher.bundle.manifest
    told = {"name": manifest.name, "sha256": teacher.bundle.sha256, "licence": manifest.licence}
    record = json.loads(json.dumps({"settings": settings, "teacher": told}))
    if path.is_file():
        try:
            there = parse_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} cannot be read: {error}") from error
        if there != record:
            raise OutputError(
                f"{path.parent} holds pairs of another teacher or other settings ({path.name} has them)",
                hint="another --out, or remove that folder",
            )
    else:
        with atomic_write(path) as file:
            file.write(json.dumps(record, indent=1).encode())


def _file(out: Path, side: str, number: int) -> Path:
    return out / side / f"{number:06}.png"


def _levels(x: Tensor) -> Pixels:
    """(h, w, 3) of (3, h, w) in [-1, 1]."""
    levels: Pixels = ((x + 1) * 127.5).round().clamp(0, 255).byte().movedim(0, -1).numpy()
    return levels


def _save(pixels: Pixels, path: Path) -> None:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    with atomic_write(path) as file:
        file.write(encoded.getvalue())
