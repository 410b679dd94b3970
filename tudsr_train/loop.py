"""The loop that every kind of training shares: backward, accumulation, schedule, log, checkpoints, resume.

What is trained, and from which losses, is the business of `base`, `stage1` and `stage2`: each hands the
loop a function that yields one loss after another, and the loop runs one backward for each before it asks
for the next.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from tudsr_runtime.atomic import atomic_dir
from tudsr_runtime.errors import TrainingError
from tudsr_train.config import Optimization
from tudsr_train.data import Pairs

Loss = tuple[Tensor, dict[str, float]]
Algorithm = Callable[[int, Tensor, Tensor], Iterator[Loss]]
"""(number of the micro-step, x_L, x_H) to losses, each with its terms for the log."""

CHECKPOINTS_KEPT = 2
BAD_STEPS_ALLOWED = 20  # in a row, before the run is given up


@dataclass
class Loop:
    """Trains `parameters` by AdamW on what an algorithm yields; state lives in `folder`."""

    folder: Path
    parameters: dict[str, nn.Parameter]
    optimization: Optimization
    losses_per_pair: int = 1
    """How many losses the algorithm yields per batch: N^2 in stage 2."""
    step: int = 0
    _interrupted: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        o = self.optimization
        self.folder.mkdir(parents=True, exist_ok=True)
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=o.lr, weight_decay=o.weight_decay
        )
        if o.accumulation % self.losses_per_pair and self.losses_per_pair % o.accumulation:
            raise TrainingError(
                f"accumulation is {o.accumulation}, but every batch yields {self.losses_per_pair} losses: "
                "one must divide the other"
            )

    @property
    def batches(self) -> int:
        """Batches that the whole run consumes."""
        return math.ceil(self.optimization.steps * self.optimization.accumulation / self.losses_per_pair)

    def run(self, pairs: Pairs, algorithm: Algorithm) -> None:
        """Train from the current step to the last one."""
        o = self.optimization
        first = self.step * o.accumulation // self.losses_per_pair
        numbers = range(first * o.batch_size, self.batches * o.batch_size)
        loader = DataLoader(
            Subset(pairs, numbers),
            batch_size=o.batch_size,
            num_workers=o.workers,
            worker_init_fn=_leave_interrupts_to_the_parent,
        )
        log, micro, bad, started = _Log(self.folder / "log.jsonl"), 0, 0, time.monotonic()
        first_step = self.step
        with self._graceful_stop():
            for number, (x_L, x_H) in enumerate(loader, first):
                for loss, terms in algorithm(number, x_L, x_H):
                    (loss / o.accumulation).backward()
                    log.add(terms)
                    micro += 1
                    if micro % o.accumulation:
                        continue
                    bad = 0 if self._update() else bad + 1
                    if bad > BAD_STEPS_ALLOWED:
                        raise TrainingError(
                            f"{bad} steps in a row had no finite gradient; stopped at {self.step}"
                        )
                    self.step += 1
                    if self.step % o.log_every == 0:
                        rate = (self.step - first_step) / (time.monotonic() - started)
                        log.write(self.step, o.steps, self.optimizer.param_groups[0]["lr"], rate)
                    last = self.step == o.steps or bool(self._interrupted)
                    if self.step % o.save_every == 0 or last:
                        self.save()
                    if self._interrupted:
                        _say(f"stopped at step {self.step}; the same command goes on from there")
                        raise SystemExit(128 + self._interrupted)

    def _update(self) -> bool:
        """Clip, step and clear; False (and no step) where the gradient is not finite."""
        o = self.optimization
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), o.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = o.lr * lr_factor(self.step, o)
        finite = bool(norm.isfinite())
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return finite

    @contextlib.contextmanager
    def _graceful_stop(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM saves after the current step; a second one acts at once."""

        def note(number: int, _: Any) -> None:
            self._interrupted = number
            signal.signal(number, signal.SIG_DFL)

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def save(self) -> None:
        """Write checkpoint `step-NNNNNN` whole or not at all, then drop the oldest ones."""
        final = self.folder / f"step-{self.step:06d}"
        with atomic_dir(final, overwrite=True) as folder:
            state = {
                "step": self.step,
                "parameters": {name: p.detach() for name, p in self.parameters.items()},
                "optimizer": self.optimizer.state_dict(),
            }
            torch.save(state, folder / "state.pt")
        for old in _checkpoints(self.folder)[:-CHECKPOINTS_KEPT]:
            shutil.rmtree(old)

    def resume(self, which: str) -> None:
        """Continue from a checkpoint: `auto` (the newest, if any), `never`, or a checkpoint's folder."""
        if which == "never":
            return
        found = _checkpoints(self.folder) if which == "auto" else [Path(which)]
        if not found:
            _say("no checkpoint yet: starting from step 0")
            return
        try:
            state = torch.load(found[-1] / "state.pt", weights_only=True)
        except FileNotFoundError as error:
            raise TrainingError(f"{found[-1]}: no checkpoint here (state.pt is missing)") from error
        if state["parameters"].keys() != self.parameters.keys():
            raise TrainingError(f"{found[-1]}: the checkpoint is of another model")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])
        _say(f"resumed from {found[-1]} at step {self.step}")


def _leave_interrupts_to_the_parent(_: int) -> None:
    # Ctrl-C reaches every process of the terminal; without its workers the parent could not finish its step
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def lr_factor(step: int, optimization: Optimization) -> float:
    """Share of the learning rate at a step: linear warm-up, then constant or a cosine down to 1 %."""
    if step < optimization.warmup:
        return (step + 1) / optimization.warmup
    if optimization.schedule == "constant":
        return 1.0
    if optimization.schedule == "cosine":
        progress = (step - optimization.warmup) / max(1, optimization.steps - optimization.warmup)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2
    raise TrainingError(f"schedule {optimization.schedule!r} is not known; constant and cosine are")


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-[0-9]*")) if folder.is_dir() else []


class _Log:
    """Running means of the loss terms, as JSON lines in a file and a line on stderr."""

    def __init__(self, path: Path) -> None:
        self.path, self.sums, self.count = path, dict[str, float](), 0

    def add(self, terms: dict[str, float]) -> None:
        self.count += 1
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def write(self, step: int, steps: int, lr: float, rate: float) -> None:
        means = {name: total / self.count for name, total in self.sums.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "lr": lr, "steps_per_s": rate, **means}) + "\n")
        shown = "  ".join(f"{name} {value:.5f}" for name, value in means.items())
        minutes = (steps - step) / rate / 60
        _say(f"step {step}/{steps}  {shown}  lr {lr:.2e}  {rate:.2f} steps/s  {minutes:.0f} min left")
        self.sums, self.count = {}, 0


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
