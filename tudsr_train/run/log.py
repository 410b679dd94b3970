"""What a run says of itself: lines on stderr, `log.jsonl`, and accelerate's trackers (TensorBoard)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image

from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.errors import TrainingError
from tudsr_runtime.files import make_folder
from tudsr_runtime.streams import printable_lines
from tudsr_train.config import Optimization
from tudsr_train.run.processes import mean_over_processes

GIB = 2**30


def say(accelerator: Accelerator, text: str) -> None:
    """A line on stderr, from the first process only."""
    if accelerator.is_main_process:
        sys.stderr.write(printable_lines(text) + "\n")
        sys.stderr.flush()


def usable_trackers(wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """(trackers that can be used, notes on those that cannot).

    TensorBoard is the default and may be absent: the figures are in log.jsonl anyhow. Any other was asked
    for: TrainingError where it is not known or its package is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there, notes = {str(tracker) for tracker in get_available_trackers()}, []
    for name in wanted:
        if name in there:
            continue
        if name not in LOGGER_TYPE_TO_CLASS:
            raise TrainingError(
                f"tracker {name!r} is not known; {', '.join(sorted(LOGGER_TYPE_TO_CLASS))} are"
            )
        if name != "tensorboard":
            raise TrainingError(
                f"tracker {name!r} needs a package that is not installed", hint=f"pip install {name}"
            )
        notes.append("TensorBoard is not installed: figures go to log.jsonl alone (pip install tensorboard)")
    return [name for name in wanted if name in there], notes


class RunLog:
    """Means of all figures since the last line, written every `log_every` steps."""

    def __init__(self, folder: Path, accelerator: Accelerator, optimization: Optimization) -> None:
        self.folder, self.accelerator, self.optimization = folder, accelerator, optimization
        self._sums, self._counts = dict[str, float](), dict[str, int]()
        self._images, self._first_step, self._last_step = 0, 0, 0
        self._started = self._last_time = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def start(self, step: int, settings: dict[str, Any]) -> None:
        """Note where the run begins, and hand its settings to the trackers."""
        self._first_step = self._last_step = step
        self._started = self._last_time = time.monotonic()
        if self.accelerator.is_main_process:
            _forget_after(self.folder / "log.jsonl", step)
        if self.accelerator.log_with:
            self.accelerator.init_trackers("tudsr", config=_flat(settings))

    def add(self, figures: dict[str, float]) -> None:
        """Figures of one micro-step."""
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def add_update(self, network: str, gradient_norm: float, lr: float) -> None:
        """Figures of one network's optimizer step."""
        self.add({f"gradient_norm/{network}": gradient_norm, f"lr/{network}": lr})

    def count_images(self, count: int) -> None:
        """Add to the pairs that this process has seen."""
        self._images += count

    def write(self, step: int, skipped: int) -> None:
        """A line of the means since the last one."""
        figures = {name: total / self._counts[name] for name, total in self._sums.items()}
        figures = mean_over_processes(self.accelerator, figures)
        now = time.monotonic()
        elapsed = max(now - self._last_time, 1e-9)
        figures |= {
            "steps_per_s": (step - self._last_step) / elapsed,
            "images_per_s": self._images * self.accelerator.num_processes / elapsed,
            "peak_memory_gib": peak_memory(self.accelerator.device) / GIB,
            "skipped": skipped,
        }
        self._record(step, figures)
        say(self.accelerator, self._line(step, figures, now))
        self._sums, self._counts, self._images = {}, {}, 0
        self._last_step, self._last_time = step, now

    def validation(self, step: int, picture: NDArray[np.uint8], figures: dict[str, float]) -> None:
        """Keep a validation grid (H, W, 3) as `validation/step-NNNNNN.png`, show it to the trackers."""
        path = self.folder / "validation" / f"step-{step:06d}.png"
        make_folder(path.parent)
        with atomic_write(path) as file:
            Image.fromarray(picture).save(file, "PNG")
        figures = {f"validation/{name}": value for name, value in figures.items()}
        self._record(step, figures)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                tracker.log_images({"validation": picture[None]}, step=step, **_layout(tracker.name))
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        say(self.accelerator, f"step {step}: {shown}  {path}")

    def _record(self, step: int, figures: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **figures}) + "\n")
        self.accelerator.log(figures, step=step)

    def _line(self, step: int, figures: dict[str, float], now: float) -> str:
        rate = (step - self._first_step) / max(now - self._started, 1e-9)
        left = timedelta(seconds=round((self.optimization.steps - step) / rate))
        hidden = ("lr/", "skipped", "images_per_s", "peak_memory")
        shown = [f"{name} {value:.4g}" for name, value in figures.items() if not name.startswith(hidden)]
        return f"step {step}/{self.optimization.steps}  {'  '.join(shown)}  {left} left"


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that an interrupted run did, but did not save: they come again."""
    if not path.is_file():
        return
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    with atomic_write(path) as file:
        for line in lines:
            if json.loads(line)["step"] <= step:
                file.write(f"{line}\n".encode())


def _layout(tracker: str) -> dict[str, str]:
    return {"dataformats": "NHWC"} if tracker == "tensorboard" else {}


def _flat(tree: dict[str, Any], where: str = "") -> dict[str, int | float | str | bool]:
    flat: dict[str, int | float | str | bool] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{where}{key}.")
        else:
            flat[where + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch has had on a GPU; elsewhere the most that this process has held, or 0
    where the system does not say (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
