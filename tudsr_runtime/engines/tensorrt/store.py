"""All engines of a bundle as one folder: built once, even by two processes, and published whole.

<cache>/engines/<bundle sha256>/<library>-<version>-<target>/engine.json, *.plan, *.layers.json
<cache>/timings/<library>-<version>-<target>.cache
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tudsr_runtime.atomic import atomic_dir, atomic_write
from tudsr_runtime.bundle import Bundle
from tudsr_runtime.engines.backend import as_end, check_interface
from tudsr_runtime.engines.tensorrt.builder import BuiltEngine, build_engine
from tudsr_runtime.engines.tensorrt.library import Library
from tudsr_runtime.engines.tensorrt.record import (
    RECORD_NAME,
    RECORD_SCHEMA,
    BuiltPlan,
    EngineRecord,
    engine_cache,
    engine_folder,
    engine_variants,
    read_record,
)
from tudsr_runtime.errors import DeviceError, OutputError, TudsrError
from tudsr_runtime.files import cache_folder, exclusive, file_sha256, link_or_copy, make_folder
from tudsr_runtime.manifest import BundleFile, Variant


class Reporter:
    """What a build tells while it runs; a subclass shows it, this one keeps silent."""

    def note(self, text: str) -> None:
        """Something that the user may want to know."""

    def component(self, number: int, count: int, name: str, expected: float | None) -> None:
        """Engine `number` of `count` begins; `expected` are the seconds that one like it took, if known."""

    def progress(self, fraction: float, phase: str) -> None:
        """The finished part of the current engine, 0 to 1; called from another thread."""


@dataclass(frozen=True)
class EngineFolder:
    """Engines that were found or built. `built` says which of the two."""

    path: Path
    record: EngineRecord
    built: bool


@dataclass(frozen=True)
class Wanted:
    """Which engines are wanted: of which bundle, in which precision (None: its own), by which library, for
    which GPU, and of these only those of some names (None: all; see `engine_variants`)."""

    bundle: Bundle
    library: Library
    target: str
    precision: str | None = None
    names: frozenset[str] | None = None

    @property
    def variants(self) -> dict[str, Variant]:
        """The graphs (see `engine_variants`). Raises BundleError if the bundle has none of that precision."""
        found = engine_variants(self.bundle, self.precision)
        return {name: found[name] for name in found if self.names is None or name in self.names}

    def missing(self, plans: Mapping[str, BuiltPlan]) -> dict[str, Variant]:
        """The graphs that `plans`, which go by graph, has no engine of."""
        return {name: variant for name, variant in self.variants.items() if variant.model not in plans}

    def plans(self, record: EngineRecord) -> list[BuiltPlan]:
        """The engines of a record that are wanted."""
        models = {variant.model for variant in self.variants.values()}
        return [plan for model, plan in record.plans.items() if model in models]

    def misfit(self, record: EngineRecord) -> str | None:
        """Why recorded engines are not these, in words; None if they are."""
        return record.misfit(self.library, self.target, self.variants.values())


def ensure_engines(
    wanted: Wanted,
    folder: Path | None = None,
    reporter: Reporter | None = None,
    thorough: bool = True,
) -> EngineFolder:
    """Take the engines in `folder` (the cache's own by default) if they are the wanted ones, else build those
    that are missing. The others of the folder stay if they are of this bundle and could serve.

    Without `thorough` the size of each file is compared with its record, its bytes are not.

    Raises:
        DeviceError: a graph cannot be built; nothing is published then.
        BundleError: a graph is not what the manifest says.
        OutputError: the folder cannot be written, or holds what is not ours.
    """
    reporter = reporter or Reporter()
    path = folder or engine_folder(wanted.bundle, wanted.library, wanted.target, wanted.precision)
    path = path.absolute()
    make_folder(path.parent, private=True)
    lock = path.with_name(f".{path.name}.lock")
    with exclusive(lock, lambda: reporter.note(f"another process builds {path}; waiting for it")):
        found, reason = _serving(path, wanted, thorough)
        if found is not None:
            return EngineFolder(path, found, built=False)
        kept = _kept(path, wanted) if reason else {}
        _tell_why(reporter, path, reason or _predecessor(wanted), wanted, kept)
        return EngineFolder(path, _build_missing(path, wanted, kept, reporter), built=True)


def _tell_why(
    reporter: Reporter, path: Path, reason: str | None, wanted: Wanted, kept: Mapping[str, BuiltPlan]
) -> None:
    there = {one.name.partition(".")[0] for one in path.glob("*.*")} if kept else set()
    if kept and there.isdisjoint(wanted.missing(kept)):
        reporter.note(f"adding engines to the {len(kept)} in {path}")
    elif reason:
        reporter.note(f"building the engines again: {reason}")


def _kept(path: Path, wanted: Wanted) -> dict[str, BuiltPlan]:
    """The engines of a folder that would serve, whether they are wanted now or not, by graph."""
    try:
        record = read_record(path)
    except DeviceError:
        return {}
    if record.misfit(wanted.library, wanted.target):
        return {}
    graphs = {one.model: one.files for one in engine_variants(wanted.bundle, wanted.precision).values()}
    return {
        model: plan
        for model, plan in record.plans.items()
        if graphs.get(model) == plan.graph and _damage(path, [plan]) is None
    }


def _serving(path: Path, wanted: Wanted, thorough: bool) -> tuple[EngineRecord | None, str | None]:
    """The record of engines that serve, else why those that are there do not (None: there are none)."""
    if not path.exists():
        return None, None
    _refuse_foreign(path)
    if not (path / RECORD_NAME).exists():
        return None, None
    try:
        record = read_record(path)
    except DeviceError as error:
        return None, str(error)
    reason = wanted.misfit(record) or _damage(path, wanted.plans(record), thorough)
    return (None, reason) if reason else (record, None)


def _damage(path: Path, plans: Iterable[BuiltPlan], thorough: bool = True) -> str | None:
    """Which file of these engines is not the one that was built, if any."""
    for plan in plans:
        for file in (plan.file, plan.layers):
            try:
                same = (path / file.path).stat().st_size == file.bytes
                same = same and (not thorough or file_sha256(path / file.path) == file.sha256)
            except OSError as error:
                return f"{file.path} cannot be read ({error.strerror or error})"
            if not same:
                return f"{file.path} has changed since it was built"
    return None


def _refuse_foreign(path: Path) -> None:
    """A folder that is replaced must hold nothing but engines."""
    if not path.is_dir():
        raise OutputError(f"{path} is not a folder")
    for inside in path.iterdir():
        if inside.name != RECORD_NAME and not inside.name.endswith((".plan", ".layers.json")):
            raise OutputError(
                f"{path} holds {inside.name!r}, which is no engine; engines replace their folder",
                hint="-o with a folder of its own",
            )


def _predecessor(wanted: Wanted) -> str | None:
    """Why engines that the cache has for this model and GPU do not serve; None if it has none."""
    library = wanted.library.name
    for record in recorded():
        same = (record.bundle, record.library) == (wanted.bundle.manifest.name, library)
        reason = wanted.misfit(record) if same and record.target == wanted.target else None
        if reason is not None:
            return reason
    return None


def recorded() -> Iterator[EngineRecord]:
    """Every readable record of the user's cache."""
    for file in sorted(engine_cache().glob(f"*/*/{RECORD_NAME}")):
        with suppress(TudsrError):
            yield read_record(file.parent)


def expected_seconds(
    library: Library, graph_bytes: int, just_built: Iterable[BuiltPlan] = ()
) -> float | None:
    """How long the graph nearest in size took that this machine has built, scaled by the sizes; of equals,
    the one `just_built`.

    None if none within a factor of four has been built by this library.
    """
    cached = (
        plan for record in recorded() if record.library == library.name for plan in record.plans.values()
    )
    timed = [(_graph_bytes(plan.graph), plan.facts.seconds) for plan in (*just_built, *cached)]
    near = [(size, seconds) for size, seconds in timed if graph_bytes / 4 <= size <= graph_bytes * 4]
    if not near:
        return None
    size, seconds = min(near, key=lambda one: abs(one[0] - graph_bytes))
    return seconds * graph_bytes / size


def _graph_bytes(files: Iterable[BundleFile]) -> int:
    return sum(file.bytes for file in files)


def _build_missing(
    path: Path, wanted: Wanted, kept: Mapping[str, BuiltPlan], reporter: Reporter
) -> EngineRecord:
    library, bundle, missing = wanted.library, wanted.bundle, wanted.missing(kept)
    timings = _Timings(library, wanted.target)
    plans = dict(kept)
    with atomic_dir(path, overwrite=True) as partial:
        for plan in kept.values():
            for file in (plan.file, plan.layers):
                link_or_copy(path / file.path, partial / file.path)
        for number, (name, variant) in enumerate(missing.items(), 1):
            bundle.check(variant.files)
            expected = expected_seconds(library, _graph_bytes(variant.files), plans.values())
            reporter.component(number, len(missing), name, expected)
            built = build_engine(
                bundle.path(variant),
                wanted.target,
                library,
                timing_cache=timings.data,
                progress=reporter.progress,
            )
            timings.data = built.timing_cache
            check_interface(variant.model, map(as_end, built.inputs), map(as_end, built.outputs), variant)
            plans[variant.model] = _write(partial, name, variant, built)
        record = EngineRecord(
            RECORD_SCHEMA,
            library.name,
            library.version,
            wanted.target,
            library.platform,
            bundle.manifest.name,
            bundle.sha256,
            plans,
        )
        (partial / RECORD_NAME).write_text(record.to_json(), encoding="utf-8")
    timings.save()
    return record


def _write(folder: Path, name: str, variant: Variant, built: BuiltEngine) -> BuiltPlan:
    listing = json.dumps([dataclasses.asdict(layer) for layer in built.layers], indent=1)
    return BuiltPlan(
        name,
        _write_file(folder, f"{name}.plan", built.plan),
        _write_file(folder, f"{name}.layers.json", listing.encode()),
        variant.files,
        built.inputs,
        built.outputs,
        built.facts,
    )


def _write_file(folder: Path, name: str, data: bytes | memoryview) -> BundleFile:
    (folder / name).write_bytes(data)
    return BundleFile(name, hashlib.sha256(data).hexdigest(), len(data))


class _Timings:
    """What TensorRT measured on this GPU: the second UNet, of the same layers, then costs seconds."""

    def __init__(self, library: Library, target: str) -> None:
        self._path = cache_folder() / "timings" / f"{library.name}-{library.version}-{target}.cache"
        self._read = b""
        if not library.ahead_of_time:
            with suppress(OSError):
                self._read = self._path.read_bytes()
        self.data = self._read

    def save(self) -> None:
        """Keep it for the next build. A cache that cannot be written costs time, not the engines."""
        if self.data and self.data != self._read:
            with suppress(OutputError):
                make_folder(self._path.parent, private=True)
                with atomic_write(self._path) as file:
                    file.write(self.data)
