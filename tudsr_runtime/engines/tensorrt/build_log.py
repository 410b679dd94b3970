"""What TensorRT says while it builds and runs: errors, memory, the layers of an engine, and how far it is.

TensorRT calls back from C++, sometimes from its own threads; an exception there would end the process, so
these listeners keep everything and raise nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tudsr_runtime.engines.backend import lacks_memory

BuildProgress = Callable[[float, str], None]
"""Called with the finished part of a build, 0 to 1, and the name of the phase at work."""

ERRORS = ("ERROR", "INTERNAL_ERROR")
LAYERS = "Layers:\n"
"""How the message begins that lists the layers of a finished engine."""
COUNTED_BYTES = re.compile(r"Total (Activation|Weights) Memory: (\d+) bytes")


@dataclass
class BuildLog:
    """The messages of one build, or of one piece of work of a runtime, that matter afterwards.

    `shortages` are those errors and warnings that say that memory is short. TensorRT says it where it
    allocates, as a warning too; the error that ends the work comes later and need not repeat it.
    """

    errors: list[str] = field(default_factory=list)
    shortages: list[str] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    layers: str = ""

    def take(self, severity: str, message: str) -> None:
        """Keep `message` if it tells something; `severity` is the name of TensorRT's."""
        if severity in ("WARNING", *ERRORS) and lacks_memory(message):
            self.shortages.append(" ".join(message.split()))
        if severity in ERRORS:
            self.errors.append(" ".join(message.split()))
        elif message.startswith(LAYERS):
            self.layers = message
        elif found := COUNTED_BYTES.match(message):
            self.memory[found[1].lower()] = int(found[2])

    def forget(self) -> None:
        """Drop errors and shortages: what follows is other work."""
        self.errors.clear()
        self.shortages.clear()

    def failure(self) -> RuntimeError:
        """Why the work failed: short memory where anything said so, else the error that came last."""
        said = (*self.errors, *self.shortages)
        return RuntimeError(said[-1] if said else "TensorRT gave no reason")


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """TensorRT's nested phases as one fraction: a phase's share of its parent is one step."""

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self.fraction = 0.0
        """Finished part of the whole build, 0 to 1; it never falls."""

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins within `parent`."""
        self._open[name] = _Phase(parent, max(steps, 1))
        self._measure()

    def step(self, name: str, step: int) -> None:
        """Step number `step` of a phase is finished."""
        if name in self._open:
            self._open[name].done = step + 1
        self._measure()

    def finish(self, name: str) -> None:
        """A phase has ended; that is a step of its parent."""
        ended = self._open.pop(name, None)
        if ended is not None and ended.parent is None:
            self.fraction = 1.0
        self._measure()

    @property
    def innermost(self) -> str:
        """The phase that began last of those that have not ended."""
        return next(reversed(self._open), "")

    def _measure(self) -> None:
        roots = [name for name, phase in self._open.items() if phase.parent not in self._open]
        if roots:
            self.fraction = max(self.fraction, min(self._part(roots[0]), 1.0))

    def _part(self, name: str) -> float:
        phase = self._open[name]
        children = [child for child, inner in self._open.items() if inner.parent == name]
        inside = self._part(children[-1]) if children else 0.0
        return min(phase.done + inside, phase.steps) / phase.steps


def make_logger(trt: Any, log: BuildLog) -> Any:
    """An object for TensorRT to log to, which fills `log`."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.take(str(getattr(severity, "name", severity)), message)

    return Logger()


class Watcher(Phases):
    """Tells of progress and can end the build: TensorRT asks after every step whether to `stop`."""

    def __init__(self, progress: BuildProgress | None) -> None:
        super().__init__()
        self._progress = progress
        self.stop = False
        self.failure: BaseException | None = None
        """What `progress` raised, to be raised once TensorRT has returned."""

    def _measure(self) -> None:
        super()._measure()
        if self._progress is None or self.stop:
            return
        try:
            self._progress(self.fraction, self.innermost)
        except BaseException as error:  # It must not travel through C++.
            self.failure, self.stop = error, True


def make_monitor(trt: Any, watcher: Watcher) -> Any:
    """An object for TensorRT to report progress to, which passes it to `watcher`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watcher.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            watcher.step(phase_name, step)
            return not watcher.stop

        def phase_finish(self, phase_name: str) -> None:
            watcher.finish(phase_name)

    return Monitor()
