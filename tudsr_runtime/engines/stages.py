"""The engines of one bundle on one device: loaded when needed, shared, exchanged when memory is short."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

from tudsr_runtime.bundle import Bundle
from tudsr_runtime.engines.backend import (
    Choice,
    Engine,
    Precision,
    StageRunner,
    TileFunction,
    load_stage,
    open_backend,
)
from tudsr_runtime.errors import DeviceError
from tudsr_runtime.geometry import FloatArray

Notify = Callable[[str], None]
"""Told in plain words what was done otherwise than planned."""


class LoadedEngines:
    """Keeps engines until `close`. Safe to share between threads, but for `close`.

    `tiles` are the tile sizes in px that may be used, the greatest first; `give_way` takes one out.
    """

    def __init__(
        self,
        bundle: Bundle,
        choice: Choice,
        threads: int | None,
        strength: tuple[float, float],
        notify: Notify,
    ) -> None:
        self._bundle = bundle
        self._choice = choice
        self._precise = _precise(bundle, choice)
        self._threads = threads
        self._strength = strength
        self._notify = notify
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, int, str], Engine] = {}
        self.tiles = bundle.tiles

    def stage(self, index: int, tile: int) -> StageRunner:
        """Stage `index` of the bundle for tiles of that size. Raises as `load_stage`."""
        return self._stage(index, tile, self._choice)

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
        """After memory ran out with tiles of that size: use only smaller ones from now on.

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

    def _stage(self, index: int, tile: int, choice: Choice) -> StageRunner:
        stage, name = self._bundle.manifest.stages[index], choice.precision.name if choice.precision else ""
        with self._lock:
            loaded = {
                component: engine
                for (component, size, precision), engine in self._loaded.items()
                if (size, precision) == (tile, name)
            }
            runner = load_stage(
                self._bundle,
                stage,
                choice,
                self._threads,
                loaded,
                self._strength[index],
                tile,
                self._notify,
            )
            self._loaded |= {(component, tile, name): engine for component, engine in loaded.items()}
            return runner


def _precise(bundle: Bundle, choice: Choice) -> Choice | None:
    """The same place computing in float32, if it computes in less and can."""
    if choice.precision is None or choice.precision.name == "fp32":
        return None
    try:
        found = open_backend(choice.backend).precision(choice.device, "fp32", bundle.precisions)
    except DeviceError:
        return None
    return dataclasses.replace(choice, precision=Precision(found.name, "a tile went wrong"))
