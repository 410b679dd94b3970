"""The loop that every kind of training shares: backward, accumulation, schedule, log, checkpoints, resume.

What is trained, and from which losses, is the business of `base`, `stage1` and `stage2`: each hands the
loop a function that yields one loss after another, and the loop runs one backward for each before it asks
for the next.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tudsr_runtime.errors import TrainingError
from tudsr_runtime.files import make_folder
from tudsr_train.config import Optimization
from tudsr_train.data.pairs import PairDataset
from tudsr_train.run import checkpoint
from tudsr_train.run.best import Best
from tudsr_train.run.checkpoint import Checkpoint
from tudsr_train.run.log import RunLog, say
from tudsr_train.run.optimization import lr_factor, make_optimizer
from tudsr_train.run.processes import (
    average_gradients,
    from_the_first,
    largest_over_processes,
    require_agreement,
    same_everywhere,
)

AVERAGE_PREFIX = "average."
"""What the names of a moving average's tensors begin with in a checkpoint."""
BAD_STEPS = 20
"""Optimizer steps in a row without finite losses and gradients that end the run."""


@dataclass(frozen=True)
class Loss:
    """A scalar to go backward from, for the one network that learns from it."""

    network: str
    """generator or discriminator."""
    value: Tensor
    terms: dict[str, float]
    """What it is made of, for the log."""


Algorithm = Callable[[int, Tensor, Tensor], Iterator[Loss]]
"""(number of the batch, x_L, x_H) to losses. Every network gets its loss once per micro-step."""


class Network:
    """What one optimizer moves: the LoRA of G, all of a base's UNet, or the heads of D."""

    def __init__(self, name: str, parameters: dict[str, nn.Parameter], lr: float, o: Optimization) -> None:
        self.name, self.parameters, self.lr, self.optimization = name, parameters, lr, o
        self.optimizer = make_optimizer(parameters.values(), lr, o)
        self.backwards = 0
        """Backward passes since the last optimizer step."""
        self.finite = True
        """Whether all losses since then were."""
        self.average: dict[str, Tensor] = {}
        """Moving average of the parameters, where G has one."""
        if name == "generator" and o.ema:
            self._start_average()

    def _start_average(self) -> None:
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold of the network itself."""
        return {**self.parameters, **{AVERAGE_PREFIX + name: value for name, value in self.average.items()}}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take it over; TrainingError where it is of another network.

        A moving average starts at the weights where the state has none.
        """
        of_average = {k: v for k, v in state.items() if k.startswith(AVERAGE_PREFIX)}
        state = {k: v for k, v in state.items() if k not in of_average}
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in self.parameters.items()}:
            raise TrainingError(
                f"the checkpoint's {self.name} is of another shape than the configured one",
                hint="resume with the configuration that the run was started with",
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])
        if self.average:
            self._start_average()
            for name, value in of_average.items():
                self.average[name.removeprefix(AVERAGE_PREFIX)].copy_(value)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network has the moving average of its weights, where there is one."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self.average.items():
            kept = value.clone()
            value.copy_(self.parameters[name])
            self.parameters[name].copy_(kept)

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """Move the average; faster in the first steps, whose weights are of no use later."""
        decay = min(self.optimization.ema, (1 + step) / (10 + step))
        for name, value in self.average.items():
            value.lerp_(self.parameters[name], 1 - decay)

    def backward(self, loss: Tensor, accumulation: int) -> None:
        """Add the gradient of loss / accumulation to what has been collected."""
        self.finite = self.finite and bool(loss.isfinite())
        (loss / accumulation).backward()
        self.backwards += 1

    def update(self, accelerator: Accelerator, step: int) -> tuple[bool, float]:
        """Average, clip, step and clear; (whether there was a step, norm of the gradient before clipping).

        There is none where a loss or the gradient is not finite.
        """
        average_gradients(accelerator, self.parameters.values())
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.optimization.max_grad_norm))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * lr_factor(step, self.optimization)
        unfinite = largest_over_processes(accelerator, int(not (self.finite and math.isfinite(norm))))
        if not unfinite:
            self.optimizer.step()
            self._follow(step)
        self.optimizer.zero_grad()
        self.backwards, self.finite = 0, True
        return not unfinite, norm


@dataclass
class Loop:
    """Trains networks on what an algorithm yields; the run's state lives in `folder`."""

    folder: Path
    networks: list[Network]
    """Networks in the order in which an algorithm yields their losses."""
    optimization: Optimization
    accelerator: Accelerator
    seed: int = 0
    losses_per_pair: int = 1
    """How many losses each network gets per batch: N^2 in stage 2."""
    accumulation: int = 0
    """Losses per optimizer step; 0 takes the optimization's."""
    settings: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    validate: Callable[[int], tuple[NDArray[np.uint8], dict[str, float]]] | None = None
    """Makes a picture (H, W, 3) and figures for the log of a step; called in the first process only."""
    validate_every: int = 0
    best: str = ""
    """Validation figure by which the best step is kept (`tudsr_train.run.best`); empty for none."""
    step: int = 0
    next_batch: int = 0
    skipped: int = 0
    _seen: int = field(default=0, init=False)
    """Step at the end of the last batch."""
    _bad: int = field(default=0, init=False)
    """Steps left out in a row."""
    _all_updated: bool = field(default=True, init=False)
    _interrupted: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.accumulation = self.accumulation or self.optimization.accumulation
        if self.accumulation % self.losses_per_pair and self.losses_per_pair % self.accumulation:
            raise TrainingError(
                f"accumulation is {self.accumulation}, but every batch yields {self.losses_per_pair} losses: "
                "one must divide the other"
            )
        require_agreement(self.accelerator, self._facts())
        for network in self.networks:
            state = {name: value.detach().clone() for name, value in network.state().items()}
            same_everywhere(self.accelerator, state.values())
            network.load_state(state)

    def _facts(self) -> dict[str, Any]:
        """What processes must agree on that are not to wait for each other for ever, or train two models."""
        counts = ("steps", "batch_size", "save_every")
        return {
            **{name: getattr(self.optimization, name) for name in counts},
            **{f"the hash of {name}": sha256 for name, sha256 in self.parents.items()},
            "seed": self.seed,
            "accumulation": self.accumulation,
            "losses per pair": self.losses_per_pair,
            "validation.every": self.validate_every,
            "networks": [
                (network.name, sum(p.numel() for p in network.parameters.values()))
                for network in self.networks
            ],
        }

    @property
    def batches(self) -> int:
        """Batches that all processes together consume until the last step, from number 0 on."""
        left = (self.optimization.steps - self.step) * self.accumulation
        return self.next_batch + math.ceil(left / self.losses_per_pair) * self.accelerator.num_processes

    def run(self, pairs: PairDataset, algorithm: Algorithm) -> None:
        """Train from the current step to the last one."""
        make_folder(self.folder)
        with self._graceful_stop(), RunLog(self.folder, self.accelerator, self.optimization) as log:
            log.start(self.step, self.settings)
            for number, (x_L, x_H) in self._batches(pairs):
                seed_draws(self.seed, number)
                for loss in algorithm(number, x_L, x_H):
                    self._learn(loss, log)
                    if self.step == self.optimization.steps:
                        break
                self.next_batch += self.accelerator.num_processes
                log.count_images(len(x_L))
                if not any(network.backwards for network in self.networks):
                    self._between_steps(log)

    def _batches(self, pairs: PairDataset) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """(number, batch) of this process: one in as many as there are processes, on its device."""
        o, every = self.optimization, self.accelerator.num_processes
        numbers = range(self.next_batch + self.accelerator.process_index, self.batches, every)
        loader = DataLoader(
            pairs,
            batch_sampler=[range(n * o.batch_size, (n + 1) * o.batch_size) for n in numbers],  # type: ignore[misc]
            num_workers=o.workers,
            worker_init_fn=_leave_interrupts_to_the_parent,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        for number, (x_L, x_H) in zip(numbers, loader, strict=True):
            device = self.accelerator.device
            yield number, (x_L.to(device, non_blocking=True), x_H.to(device, non_blocking=True))

    def _learn(self, loss: Loss, log: RunLog) -> None:
        """One backward; at the end of an accumulation the update, and with the last network's the step."""
        network = next(one for one in self.networks if one.name == loss.network)
        network.backward(loss.value, self.accumulation)
        log.add(loss.terms)
        if network.backwards < self.accumulation:
            return
        updated, norm = network.update(self.accelerator, self.step)
        log.add_update(network.name, norm, network.optimizer.param_groups[0]["lr"])
        self._all_updated = self._all_updated and updated
        if network is self.networks[-1]:
            self._finish_step(log)

    def _finish_step(self, log: RunLog) -> None:
        self.step += 1
        if self._all_updated:
            self._bad = 0
        else:
            self._bad, self.skipped = self._bad + 1, self.skipped + 1
            say(self.accelerator, f"step {self.step} left out: its losses or gradients are not finite")
        self._all_updated = True
        if self._bad == BAD_STEPS:
            raise TrainingError(
                f"{BAD_STEPS} steps in a row had no finite losses and gradients; stopped at step {self.step}",
                hint="resume from the last checkpoint with a lower learning rate, or look at the data",
            )
        if self.step % self.optimization.log_every == 0:
            log.write(self.step, self.skipped)

    def _between_steps(self, log: RunLog) -> None:
        """What may happen only where nothing is accumulated and no picture is half seen."""
        o, last = self.optimization, self.step == self.optimization.steps
        best = None
        if self.validate_every and (_passed(self._seen, self.step, self.validate_every) or last):
            best = self._validate(log)
        self._interrupted = largest_over_processes(self.accelerator, self._interrupted)
        improved = largest_over_processes(self.accelerator, int(best is not None))
        if _passed(self._seen, self.step, o.save_every) or last or self._interrupted or improved:
            self.save()
        if best is not None:
            Best(self.folder, self.best).keep(self.folder / f"step-{self.step:06d}", self.step, best)
        self._seen = self.step
        if self._interrupted and not last:
            say(self.accelerator, f"stopped at step {self.step}; the same command goes on from there")
            raise SystemExit(128 + self._interrupted)

    def _validate(self, log: RunLog) -> dict[str, float] | None:
        """Validate, in the first process; returns the figures where they are the best so far."""
        if not self.validate or not self.accelerator.is_main_process:
            return None
        with self.networks[0].averaged():
            picture, figures = self.validate(self.step)
        log.validation(self.step, picture, figures)
        return figures if self.best and Best(self.folder, self.best).improved(figures) else None

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
        """Write checkpoint `step-NNNNNN`, in the first process; see `tudsr_train.run.checkpoint`."""
        if self.accelerator.is_main_process:
            state = Checkpoint(
                self.step,
                self.next_batch,
                {network.name: network.state() for network in self.networks},
                {network.name: network.optimizer.state_dict() for network in self.networks},
                self.settings,
                self.parents,
                self.skipped,
            )
            checkpoint.save(self.folder, state, self.optimization.keep, self.optimization.keep_every)
        self.accelerator.wait_for_everyone()

    def resume(self, which: str) -> None:
        """Continue from a checkpoint: `auto` (the newest, if any), `never`, or a checkpoint's folder.

        The first process reads it, for all: other machines need not have it.

        Raises TrainingError where it is not there, damaged, or of another model or parents; settings that
        have changed are allowed, and shown.
        """
        notify = functools.partial(say, self.accelerator)
        if which == "never":
            return self._set_aside(notify)
        found = from_the_first(
            self.accelerator,
            lambda: (
                checkpoint.newest(self.folder, notify) if which == "auto" else checkpoint.load(Path(which))
            ),
        )
        if found is None:
            notify("no checkpoint yet: starting from step 0")
            return
        self._refuse_other_parents(found)
        if found.networks.keys() != {network.name for network in self.networks}:
            raise TrainingError(
                f"the checkpoint trains {' and '.join(found.networks)}, "
                f"the configuration {' and '.join(network.name for network in self.networks)}"
            )
        for network in self.networks:
            network.load_state(found.networks[network.name])
            network.optimizer.load_state_dict(found.optimizers[network.name])
        self.step = self._seen = found.step
        self.next_batch, self.skipped = found.next_batch, found.skipped
        notify(f"resumed at step {self.step}, batch {self.next_batch}")
        for line in changes(found.settings, self.settings):
            notify(f"changed since: {line}")

    def _set_aside(self, notify: Callable[[str], None]) -> None:
        """Rename an earlier run's folder, so that starting anew loses nothing of it."""
        if self.accelerator.is_main_process and checkpoint.folders(self.folder):
            taken = (self.folder.with_name(f"{self.folder.name}.{n}") for n in itertools.count(1))
            aside = next(path for path in taken if not path.exists())
            self.folder.rename(aside)
            notify(f"the earlier run is now in {aside}")
        self.accelerator.wait_for_everyone()

    def _refuse_other_parents(self, found: Checkpoint) -> None:
        for name, sha256 in found.parents.items():
            if self.parents.get(name, sha256) != sha256:
                raise TrainingError(
                    f"the checkpoint was trained on {name} {sha256[:12]}, not on {self.parents[name][:12]}",
                    hint="give the one it was trained on, or start anew with --resume never",
                )


def changes(before: dict[str, Any], now: dict[str, Any], where: str = "") -> list[str]:
    """What differs between two trees of settings, a line each."""
    found = []
    for key in {**before, **now}:
        old, new, path = before.get(key), now.get(key), where + key
        if isinstance(old, dict) and isinstance(new, dict):
            found += changes(old, new, path + ".")
        elif old != new:
            found.append(f"{path}: {old} -> {new}")
    return found


def seed_draws(seed: int, number: int) -> None:
    """Seed torch for one batch, so that its draws (posterior, DiffAugment) depend on its number alone: not
    on the number of processes, and not on whether the run was interrupted."""
    torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]))


def _passed(before: int, now: int, every: int) -> bool:
    return every > 0 and before // every != now // every


def _leave_interrupts_to_the_parent(_: int) -> None:
    # Ctrl-C reaches every process of the terminal; without its workers the parent could not finish its step
    signal.signal(signal.SIGINT, signal.SIG_IGN)
