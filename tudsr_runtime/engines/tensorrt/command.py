"""`tudsr build` and `tudsr bundle triton`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.engines.backend import Choice, split_device
from tudsr_runtime.engines.tensorrt.inspection import inspect, summary_lines
from tudsr_runtime.engines.tensorrt.library import choose_target, open_library
from tudsr_runtime.engines.tensorrt.options import BuildOptions
from tudsr_runtime.engines.tensorrt.record import engine_name
from tudsr_runtime.engines.tensorrt.store import EngineFolder, Reporter, Wanted, ensure_engines
from tudsr_runtime.engines.tensorrt.triton import write_repository
from tudsr_runtime.errors import UsageError
from tudsr_runtime.terminal import Terminal

SECONDS_BETWEEN_LINES = 10.0


class Narrator(Reporter):
    """Shows a build on stderr: what begins, how long it may take, and how far it is."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._begun = self._said = time.monotonic()
        self._label = ""
        self._expected: float | None = None

    def note(self, text: str) -> None:
        """See `Reporter.note`."""
        self._terminal.note(text)

    def component(self, number: int, count: int, name: str, expected: float | None) -> None:
        """See `Reporter.component`."""
        self._begun = self._said = time.monotonic()
        self._label, self._expected = f"engine {number} of {count}, {name}", expected
        estimate = "none like it was built here before" if expected is None else f"about {expected:.0f} s"
        self._terminal.note(f"{self._label}: {estimate}")

    def progress(self, fraction: float, phase: str) -> None:
        """See `Reporter.progress`; a line every few seconds, since the phases tell little about the time."""
        now = time.monotonic()
        if now - self._said < SECONDS_BETWEEN_LINES or not phase:
            return
        self._said = now
        spent = now - self._begun
        left = "" if self._expected is None else f", about {max(self._expected - spent, 1):.0f} s left"
        self._terminal.note(f"{self._label}: {fraction:.0%}, {phase.lower()}, {spent:.0f} s{left}")


def build(options: BuildOptions) -> None:
    """Build the engines of a bundle, or find them built; prints their folder.

    Raises:
        UsageError: no such library, target or size of tiles.
        BundleError: there is no sound bundle, or it has no graphs of that precision.
        DeviceError: the library or GPU is not there, or a graph cannot be built.
        OutputError: the folder cannot be written.
    """
    terminal = Terminal(options.quiet)
    opened = open_bundle(options.bundle)
    library = open_library(options.engine)
    target, reason = choose_target(library, options.target)
    terminal.note(f"{library.name} {library.version} for {target} ({reason}), bundle {opened.manifest.name}")
    wanted = Wanted(opened, library, target, options.precision, _of_sizes(opened, options.tile))
    found = _ensure(wanted, options.output, terminal)
    if options.as_json:
        terminal.json({"folder": str(found.path), "built": found.built, **dataclasses.asdict(found.record)})
        return
    for line in inspect(found.path, found.record) if options.inspect else ():
        terminal.result(line)
    if not options.inspect:
        for line in summary_lines(found.record):
            terminal.note(line)
        terminal.result(found.path)


def triton(bundle: str, repository: Path, engines: list[Path]) -> None:
    """Write a Triton model repository from a bundle; prints the folder of each model.

    Raises as `write_repository`, and BundleError if there is no sound bundle.
    """
    terminal = Terminal()
    names = write_repository(open_bundle(bundle), repository, engines)
    for name in names:
        terminal.result(repository / name)
    terminal.note(f"{len(names)} models; tritonserver --model-repository={repository}")


def _of_sizes(bundle: Bundle, sizes: Collection[int]) -> frozenset[str] | None:
    """The names of all engines for tiles of these sizes; None, for all, where none is given."""
    for size in sizes:
        if size not in bundle.tiles:
            known = ", ".join(map(str, bundle.tiles))
            raise UsageError(f"--tile {size}: {bundle.manifest.name} has tiles of {known} px")
    names = {engine_name(bundle, name, size) for name in bundle.manifest.components for size in sizes}
    return frozenset(names) or None


def engines_of(bundle: Bundle, places: Iterable[tuple[int, int]]) -> frozenset[str]:
    """The names of the engines that stages (from 0) need for tiles of a size in px: (stage, size) of each."""
    stages = bundle.manifest.stages
    return frozenset(
        engine_name(bundle, component, tile)
        for stage, tile in places
        for component in (stages[stage].encoder, stages[stage].unet, stages[stage].decoder)
    )


def build_missing(
    bundle: Bundle, choice: Choice, places: Collection[tuple[int, int]], terminal: Terminal
) -> None:
    """Build the engines that are about to run, of each (stage, size of tile), unless the cache has them or
    their folder was named.

    Their bytes are compared with the record where they are loaded, and not here too. Raises as `build`.
    """
    if choice.engines is not None or not places:
        return
    library = open_library(choice.backend)
    _, number = split_device(choice.device)
    target, _ = choose_target(library, None, number)
    precision = choice.precision.name if choice.precision else None
    wanted = Wanted(bundle, library, target, precision, engines_of(bundle, places))
    _ensure(wanted, None, terminal, thorough=False)


def _ensure(wanted: Wanted, output: Path | None, terminal: Terminal, thorough: bool = True) -> EngineFolder:
    started = time.monotonic()
    found = ensure_engines(wanted, output, Narrator(terminal), thorough)
    if found.built:
        seconds = time.monotonic() - started
        terminal.note(f"engines built in {seconds:.1f} s; {len(found.record.plans)} in {found.path}")
    else:
        terminal.note(f"engines: {found.path}, built before, and nothing has changed")
    return found
