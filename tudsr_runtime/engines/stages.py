"""The engines of one bundle on one device: loaded when needed, shared, exchanged when memory is short."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass

from tudsr_runtime.bundle import Bundle
from tudsr_runtime.calls import under_way
from tudsr_runtime.engines.backend import AUTO, Backend, Choice, Engine, Notify, Precision, Target
from tudsr_runtime.engines.select import open_backend
from tudsr_runtime.errors import DeviceError
from tudsr_runtime.machine import bounded_threads
from tudsr_runtime.planes import FloatArray, TileFunction

GRAPHS = {"bf16": "fp32"}
"""The graphs to load for an arithmetic that graphs are not stored in: the library lowers these itself."""
SMALL_MODEL = 100_000_000
"""Bytes of weights up to which a model counts as small (see `Target`)."""


@dataclass(frozen=True)
class LoadedStage:
    """Encoder, UNet and decoder of one stage as one unit, the way stages are trained; or its one network.

    `chain` is the back end's own way through all three, if it has one.
    """

    engines: tuple[Engine, ...]
    chain: TileFunction | None

    @property
    def parallel(self) -> int:
        """How many tiles at a time are worth running."""
        return min(engine.parallel for engine in self.engines)

    def run(self, x: FloatArray) -> FloatArray:
        """One tile: (1, 3, T, T) float32 in [-1, 1] to (1, 3, T, T), not clamped; a network reads
        (1, 3, T / M, T / M). Raises as `Engine.run`."""
        with under_way():
            if self.chain:
                return self.chain(x)
            for engine in self.engines:
                x = engine.run(x)
            return x


class LoadedEngines:
    """Keeps engines until `close`. Safe to share between threads, but for `close`.

    Stages share the components that they have in common. `tiles` are the tile sizes in px that may be used,
    the greatest first; `give_way` takes one out.

    Args:
        threads: CPU threads, at most one a processor; None leaves it to the back end.
        notify: told what was done otherwise than planned.
        tile: the only size of tiles to use, one of the bundle's; None for all.
    """

    def __init__(
        self,
        bundle: Bundle,
        choice: Choice,
        threads: int | None = None,
        notify: Notify = lambda _: None,
        tile: int | None = None,
    ) -> None:
        self._bundle = bundle
        self._choice = choice
        self._precise = in_float32(bundle, choice)
        self._threads = bounded_threads(threads, notify)
        self._notify = notify
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, int, str], Engine] = {}
        self.tiles = bundle.tiles if tile is None else (tile,)

    def stage(self, index: int, tile: int | None = None) -> LoadedStage:
        """Stage `index` of the bundle for tiles of that size (None: the bundle's own).

        Raises as `Backend.load`.
        """
        return self._stage(index, tile or self._bundle.manifest.tile, self._choice)

    def again(self, index: int, tile: int) -> TileFunction | None:
        """The stage once more in float32, loaded when it is first called; None if that is nothing new."""
        precise = self._precise
        if precise is None:
            return None

        def run(x: FloatArray) -> FloatArray:
            self._notify(f"a tile of stage {index + 1} went wrong and is computed again in fp32")
            return self._stage(index, tile, precise).run(x)

        return run

    def give_way(self, tile: int) -> bool:
        """Use only tiles smaller than `tile` from now on, with which memory ran out.

        False if there are none. The engines are dropped; they are released when nothing runs them any more.
        """
        with self._lock:
            smaller = tuple(size for size in self.tiles if size < tile)
            self._loaded = {}
            if not smaller:
                return False
            self.tiles = smaller
        self._notify(f"out of memory with tiles of {tile} px; starting again with {smaller[0]} px")
        return True

    def close(self) -> None:
        """Release the engines. They are loaded again if they are needed again."""
        with self._lock:
            while self._loaded:
                self._loaded.popitem()[1].close()

    def __enter__(self) -> LoadedEngines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stage(self, index: int, tile: int, choice: Choice) -> LoadedStage:
        backend = open_backend(choice.backend)
        target = self._target(choice, backend)
        with self._lock:
            parts = self._bundle.parts(index)
            engines = tuple(self._engine(component, tile, backend, target) for component in parts)
            return LoadedStage(engines, backend.chain(engines))

    def _engine(self, component: str, tile: int, backend: Backend, target: Target) -> Engine:
        key = (component, tile, target.precision)
        if key not in self._loaded:
            graph = GRAPHS.get(target.precision, target.precision)
            variant = self._bundle.variant(component, preferred=graph, tile=tile)
            with under_way():
                self._loaded[key] = backend.load(self._bundle.path(variant), variant, target)
        return self._loaded[key]

    def _target(self, choice: Choice, backend: Backend) -> Target:
        precision = choice.precision or backend.precision(choice.device, AUTO, self._bundle.precisions)
        small = self._bundle.bytes <= SMALL_MODEL
        return Target(choice.device, precision.name, self._threads, small, choice.engines, self._notify)


def in_float32(bundle: Bundle, choice: Choice) -> Choice | None:
    """The same place computing in float32, if it computes in less and can."""
    if choice.precision is None or choice.precision.name == "fp32":
        return None
    try:
        found = open_backend(choice.backend).precision(choice.device, "fp32", bundle.precisions)
    except DeviceError:
        return None
    return dataclasses.replace(choice, precision=Precision(found.name, "a tile went wrong"))
