"""What runs a bundle here: chosen as `select` does, and where nobody named it, shown to serve this bundle.

`auto` takes an arithmetic below float32 only if the bundle's own golden tile stays right in it: that is
measured when a bundle first meets a processor and a version of the library, and the answer is kept.

<cache>/golden/<hash of what it depends on>.json
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.bundle import DECODERS, Bundle
from tudsr_runtime.engines.backend import AUTO, Choice, Notify, Unavailable, split_device
from tudsr_runtime.engines.select import BUILT, select
from tudsr_runtime.engines.stages import in_float32
from tudsr_runtime.errors import DeviceError, MemoryExhausted, NotFiniteError, OutputError
from tudsr_runtime.files import cache_folder, make_folder
from tudsr_runtime.golden_tile import LEAST_DB, Figure, run_golden
from tudsr_runtime.installation import engine_libraries, processor
from tudsr_runtime.terminal import Terminal


@dataclass(frozen=True)
class Asked:
    """What the user asked for: names as in `select`, "auto" where it is left to us.

    `engines` is a folder of TensorRT's, whose library is then the back end.
    """

    backend: str = AUTO
    device: str = AUTO
    precision: str = AUTO
    engines: Path | None = None


def choose(
    bundle: Bundle,
    asked: Asked,
    threads: int | None = None,
    notify: Notify = lambda _: None,
    *,
    afresh: bool = False,
) -> tuple[Choice, list[Figure] | None]:
    """The back end, device and arithmetic for a bundle, with the golden tile's figures if they were measured.

    Args:
        bundle: what is to run.
        asked: what is named there is used or is an error.
        threads: CPU threads.
        notify: told before something is measured.
        afresh: measure what an earlier answer is known of, too.

    Raises as `select`, and as `run_golden` where what was chosen cannot be loaded; of `asked.engines` as
    `tudsr_runtime.engines.tensorrt.record.library_of_engines`.
    """
    if asked.engines is not None:
        from tudsr_runtime.engines.tensorrt.record import library_of_engines

        asked = dataclasses.replace(asked, backend=library_of_engines(asked.engines, asked.backend))
    unfit: dict[str, str] = {}
    while True:
        obstacle = _obstacle(bundle, asked.precision, unfit)
        choice = select(asked.backend, asked.device, asked.precision, bundle.precisions, obstacle)
        choice = dataclasses.replace(choice, engines=asked.engines)
        if not _is_ours_to_prove(bundle, choice, asked):
            return choice, None
        try:
            worst, figures = _worst(bundle, choice, threads, notify, afresh)
        except DeviceError as error:
            if choice.backend not in BUILT:
                raise
            unfit[choice.backend] = str(error)
            continue
        if worst >= LEAST_DB:
            return choice, figures
        why = f"{_arithmetic(choice)} is at {worst:.1f} dB on the golden tile, below {LEAST_DB:.0f}"
        if choice.backend not in BUILT:
            return _exact(bundle, choice, why), None
        unfit[choice.backend] = why


def build_missing(
    bundle: Bundle, choice: Choice, places: Collection[tuple[int, int]], terminal: Terminal
) -> None:
    """Build the engines for each (stage from 0, size of tile) that the cache lacks; nothing where graphs run.

    Raises as `tudsr_runtime.engines.tensorrt.command.build`.
    """
    if choice.backend in BUILT:
        from tudsr_runtime.engines.tensorrt import command

        command.build_missing(bundle, choice, places, terminal)


def _is_ours_to_prove(bundle: Bundle, choice: Choice, asked: Asked) -> bool:
    """Whether nobody named what was chosen, and there is something to compare with and to take instead."""
    if bundle.manifest.golden is None:
        return False
    if choice.backend in BUILT:
        return asked.backend == AUTO
    return asked.precision == AUTO and in_float32(bundle, choice) is not None


def _exact(bundle: Bundle, choice: Choice, why: str) -> Choice:
    exact = in_float32(bundle, choice)
    assert exact is not None
    assert exact.precision is not None
    return dataclasses.replace(exact, precision=dataclasses.replace(exact.precision, reason=why))


def _obstacle(
    bundle: Bundle, precision: str, unfit: dict[str, str]
) -> Callable[[str, str], Unavailable | None]:
    """For `select`: engines serve where they were built, and unless they were found to be wrong."""

    def obstacle(name: str, device: str) -> Unavailable | None:
        if name not in BUILT:
            return None
        if name in unfit:
            return Unavailable(unfit[name], f"tudsr build {bundle.folder} --engine {name}")
        from tudsr_runtime.engines.tensorrt.backend import missing_engines

        return missing_engines(name, bundle, device, None if precision == AUTO else precision)

    return obstacle


def _worst(
    bundle: Bundle, choice: Choice, threads: int | None, notify: Notify, afresh: bool
) -> tuple[float, list[Figure] | None]:
    """PSNR in dB of the stage that is furthest from the golden tile: an earlier answer, or measured now."""
    file = _answer(bundle, choice)
    known = None if afresh else _read(file)
    if known is not None:
        return known, None
    notify(f"checking {_arithmetic(choice)} with this model's golden tile, once on this machine")
    try:
        figures = run_golden(bundle, choice, threads, notify)
    except NotFiniteError:
        figures = []
    except MemoryExhausted:
        return math.inf, None  # It says nothing about the arithmetic; pictures have smaller tiles.
    worst = min((figure.psnr_db for figure in figures), default=-math.inf)
    _keep(file, worst)
    return worst, figures


def _arithmetic(choice: Choice) -> str:
    precision = choice.precision.name if choice.precision else "this arithmetic"
    return f"{precision} with {choice.backend} on {choice.device}"


def _answer(bundle: Bundle, choice: Choice) -> Path:
    kind, _ = split_device(choice.device)
    decoder = [] if bundle.decoder == DECODERS[0] else [bundle.decoder]
    libraries = engine_libraries().items()
    depends = [bundle.sha256, *decoder, _arithmetic(choice), processor(kind), *libraries, LEAST_DB]
    name = hashlib.sha256(json.dumps(depends).encode()).hexdigest()
    return cache_folder() / "golden" / f"{name}.json"


def _read(file: Path) -> float | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        return float(json.loads(file.read_text(encoding="utf-8"))["worst_db"])
    return None


def _keep(file: Path, worst: float) -> None:
    """A cache that cannot be written costs time at the next start, nothing else."""
    with suppress(OutputError):
        make_folder(file.parent, private=True)
        with atomic_write(file) as out:
            # As text: JSON knows no infinity.
            out.write(json.dumps({"worst_db": str(worst)}).encode())
