"""How long this machine takes for one tile of each size, as `tudsr bench tiles` has measured it.

<cache>/tile-times/<bundle sha256>.json: seconds by machine, card and back end, then by stage and size in px.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path

from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.bundle import Bundle
from tudsr_runtime.engines.backend import Choice, Notify, split_device
from tudsr_runtime.files import cache_folder, make_folder
from tudsr_runtime.installation import nvidia_smi
from tudsr_runtime.tiling.cost import SECONDS, TileCosts
from tudsr_runtime.typed import parse_json, read_typed

Times = Mapping[tuple[int, int], float]
"""Seconds of one tile by stage (from 0) and size in px."""
_Stored = dict[str, dict[str, dict[str, float]]]
MAX_BYTES = 1 << 20


def stored_times(bundle: Bundle, choice: Choice, threads: int | None, notify: Notify) -> TileCosts | None:
    """What was measured here of all sizes of the bundle; None if nothing was.

    `notify` is told of a file that is damaged, which is then left alone.
    """
    path = _path(bundle)
    try:
        stored = _read(path)
    except ValueError as error:
        notify(f"{path} is damaged ({str(error)[:80]}) and not used; tudsr bench tiles measures again")
        return None
    if not stored:
        return None
    # Earlier versions named no card.
    known = (_place(bundle, choice, threads), _place(bundle, choice, threads, named=False))
    found = next((stored[place] for place in known if place in stored), {})
    try:
        return TileCosts(
            {(stage, tile): found[str(stage)][str(tile)] for stage, tile in bundle.places},
            SECONDS,
            "measured here by tudsr bench tiles",
        )
    except KeyError:
        return None


def store_times(bundle: Bundle, choice: Choice, threads: int | None, times: Times) -> Path:
    """Keep times for the planner; the file. Raises OutputError."""
    path = _path(bundle)
    try:
        stored = _read(path)
    except ValueError:
        stored = {}
    here: dict[str, dict[str, float]] = {}
    for (stage, tile), seconds in times.items():
        here.setdefault(str(stage), {})[str(tile)] = seconds
    stored[_place(bundle, choice, threads)] = here
    make_folder(path.parent, private=True)
    with atomic_write(path) as file:
        file.write((json.dumps(stored, indent=1, sort_keys=True) + "\n").encode())
    return path


def _path(bundle: Bundle) -> Path:
    return cache_folder() / "tile-times" / f"{bundle.sha256}.json"


def _place(bundle: Bundle, choice: Choice, threads: int | None, named: bool = True) -> str:
    """What the times depend on besides bundle, stage and size; `named`: with the NVIDIA cards that are there,
    by name and memory, since a machine may get another one."""
    precision = choice.precision.name if choice.precision else "auto"
    cards = nvidia_smi("name,memory.total") if named and split_device(choice.device)[0] == "cuda" else None
    where = choice.device + (f" ({cards})" if cards else "")
    light = "" if bundle.decoder == "full" else f", {bundle.decoder} decoder"
    return f"{platform.node()}, {choice.backend} on {where}, {precision}, threads {threads or 'auto'}{light}"


def _read(path: Path) -> _Stored:
    """Raises ValueError where it is not what `store_times` writes."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError:
        return {}
    if len(raw) > MAX_BYTES:
        raise ValueError("too large")
    stored: _Stored = read_typed(_Stored, parse_json(raw), ValueError, whole="it")
    if any(s <= 0 for place in stored.values() for stage in place.values() for s in stage.values()):
        raise ValueError("a time is not above 0")
    return stored
