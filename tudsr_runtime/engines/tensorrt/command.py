"""`tudsr build` and `tudsr bundle triton`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.engines.backend import Choice, split_device
from tudsr_runtime.engines.tensorrt.comparison import (
    Compared,
    Difference,
    compare_engines,
    compare_layers,
    require_both,
)
from tudsr_runtime.engines.tensorrt.inspection import inspect, summary_lines
from tudsr_runtime.engines.tensorrt.library import Library, choose_target, open_library
from tudsr_runtime.engines.tensorrt.options import BuildOptions
from tudsr_runtime.engines.tensorrt.record import BuiltPlan, engine_folder, engine_name, read_record
from tudsr_runtime.engines.tensorrt.store import EngineFolder, Reporter, Wanted, ensure_engines
from tudsr_runtime.engines.tensorrt.triton import write_repository
from tudsr_runtime.errors import DeviceError, NotFiniteError, UsageError
from tudsr_runtime.golden_tile import LEAST_DB
from tudsr_runtime.terminal import Terminal

SHOWN_LAYERS = 10
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
        NotFiniteError: with --compare, an engine computes something else than its graph.
    """
    terminal = Terminal(options.quiet)
    opened = open_bundle(options.bundle)
    library = open_library(options.engine)
    target, reason = choose_target(library, options.target)
    terminal.note(f"{library.name} {library.version} for {target} ({reason}), bundle {opened.manifest.name}")
    wanted = Wanted(opened, library, target, options.precision, _of_sizes(opened, options.tile))
    if options.compare:
        require_both(library, target)  # before minutes are spent on building
    found = _ensure(wanted, options.output, terminal)
    if options.compare:
        _compare(wanted, found.path, options.tile or opened.tiles, terminal)
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
        for component in stages[stage].components
    )


def engine_sizes(bundle: Bundle, choice: Choice, places: Iterable[tuple[int, int]]) -> Iterator[str]:
    """A line for each (stage from 0, size of tiles): the bytes of its engines, else of the graphs for them.

    Raises as `build`.
    """
    library = open_library(choice.backend)
    target, _ = choose_target(library, None, split_device(choice.device)[1])
    precision = choice.precision.name if choice.precision else None
    built: dict[str, BuiltPlan] = {}
    with suppress(DeviceError):
        record = read_record(choice.engines or engine_folder(bundle, library, target, precision))
        built = {plan.component: plan for plan in record.plans.values()}
    for stage, tile in places:
        names = engines_of(bundle, [(stage, tile)])
        if names <= built.keys():
            facts = [built[name].facts for name in names]
            active = max(one.activation_bytes or 0 for one in facts)
            disk = sum(one.plan_bytes for one in facts)
            size = f"{disk / 1e6:.1f} MB on the disk and the GPU, and {active / 1e6:.1f} MB for activations"
        else:
            graphs = bundle.weights(stage, tile, precision)
            size = f"not built yet; about the {graphs / 1e6:.1f} MB of the graphs"
        yield f"stage {stage + 1} with {tile} px: engines, {size}"


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


def _compare(wanted: Wanted, folder: Path, sizes: Collection[int], terminal: Terminal) -> None:
    """A line for each engine; of one that is wrong, the layers where it begins to be."""
    wrong: list[Compared] = []
    precision = wanted.precision or wanted.bundle.manifest.precision
    for one in compare_engines(wanted.bundle, folder, wanted.library, precision, sizes):
        terminal.note(_difference(one.difference))
        wrong += [] if one.difference.close else [one]
    for one in wrong:
        terminal.note(f"{one.difference.name}, layer by layer:")
        for line in _layers(one, wanted.library):
            terminal.note(f"  {line}")
    if wrong:
        names = ", ".join(one.difference.name for one in wrong)
        raise NotFiniteError(
            f"{names}: below {LEAST_DB:.0f} dB of what ONNX Runtime computes",
            hint="docs/tensorrt.md says how to go on; --precision fp32 builds the float32 graphs",
        )


def _layers(one: Compared, library: Library) -> Iterator[str]:
    """The first tensors that are wrong; or why nobody can tell, which must not hide that the engine is."""
    try:
        tensors = compare_layers(one.graph, one.variant, library, one.x)
    except DeviceError as error:
        yield f"{error}" + (f" Try: {error.hint}" if error.hint else "")
        return
    apart = [tensor for tensor in tensors if not tensor.close]
    yield f"{len(apart)} of {len(tensors)} tensors are below {LEAST_DB:.0f} dB, from the graph's first on:"
    yield from map(_difference, apart[:SHOWN_LAYERS])


def _difference(one: Difference) -> str:
    return f"{one.name}: {one.decibels:.1f} dB, largest error {one.largest:.2e}"


def _ensure(wanted: Wanted, output: Path | None, terminal: Terminal, thorough: bool = True) -> EngineFolder:
    started = time.monotonic()
    found = ensure_engines(wanted, output, Narrator(terminal), thorough)
    if found.built:
        seconds = time.monotonic() - started
        terminal.note(f"engines built in {seconds:.1f} s; {len(found.record.plans)} in {found.path}")
    else:
        terminal.note(f"engines: {found.path}, built before, and nothing has changed")
    return found
