"""`engine.json`, the sidecar of a folder of engines: what they are, checked before anything is loaded.

An engine is executable code. It is loaded only if the record beside it names this library's version, this
GPU's target, the graphs of this bundle, and the SHA-256 of the very bytes that are handed to the library.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tudsr_runtime.bundle import Bundle
from tudsr_runtime.engines.tensorrt.builder import EngineFacts
from tudsr_runtime.engines.tensorrt.library import Library
from tudsr_runtime.errors import DeviceError, UsageError, quoted
from tudsr_runtime.files import cache_folder
from tudsr_runtime.manifest import NAME, BundleFile, TensorSpec, Variant
from tudsr_runtime.typed import parse_json, read_typed

RECORD_NAME = "engine.json"
RECORD_SCHEMA = 1
MAX_RECORD_BYTES = 1 << 20


@dataclass(frozen=True)
class BuiltPlan:
    """One engine of a folder: the serialised engine `file`, its listing of `layers`, and the graph's files.

    `component` is a name of `engine_variants`. `graph` holds the ONNX file and its external weights with
    their hashes, as the manifest does.
    """

    component: str
    file: BundleFile
    layers: BundleFile
    graph: tuple[BundleFile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    facts: EngineFacts

    def __post_init__(self) -> None:
        for file in (self.file, self.layers):
            if not NAME.fullmatch(file.path):
                raise ValueError(f"{quoted(file.path)} is no plain name")


@dataclass(frozen=True)
class EngineRecord:
    """The content of engine.json. `plans` goes by the graph's file in the bundle ("unet_stage1/model.onnx").

    `target` is "sm89" or the like; of TensorRT itself with the card behind it, such as
    "sm89-nvidia-geforce-rtx-4090-24gib". `platform` is "any" or, as in "linux_x86_64", the
    one system where the engines run.
    """

    schema_version: int
    library: str
    version: str
    target: str
    platform: str
    bundle: str
    bundle_sha256: str
    plans: dict[str, BuiltPlan]

    def __post_init__(self) -> None:
        if self.schema_version != RECORD_SCHEMA:
            raise ValueError(f"schema_version is {self.schema_version}, this tudsr reads {RECORD_SCHEMA}")

    @property
    def capability(self) -> str:
        """Compute capability of the target, such as "sm89"."""
        return self.target.partition("-")[0]

    def to_json(self) -> str:
        """The text of engine.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def misfit(self, library: Library, target: str, variants: Iterable[Variant] = ()) -> str | None:
        """Why these engines cannot serve there for these graphs, in words; None if they can."""
        here = {
            "library": (self.library, library.name),
            "library's version": (self.version, library.version),
            "target": (self.target, target),
            "platform": (self.platform, library.platform),
        }
        for what, (built, wanted) in here.items():
            if built != wanted:
                return f"they were built for the {what} {built}, this is {wanted}"
        for variant in variants:
            plan = self.plans.get(variant.model)
            if plan is None:
                return f"there is none for {variant.model}"
            if plan.graph != variant.files:
                return f"the graph {variant.model} has changed"
        return None


def engine_variants(bundle: Bundle, precision: str | None = None) -> dict[str, Variant]:
    """The graphs of a bundle that engines are built from: one picture at a time, in that precision (None: the
    bundle's own), for each of its tile sizes.

    They go by component, with the tile's size behind it where it is not the bundle's own: "unet_stage1-256".

    Raises:
        BundleError: the bundle has no graph of that precision.
    """
    precision = precision or bundle.manifest.precision
    return {
        engine_name(bundle, name, tile): bundle.variant(name, precision=precision, tile=tile)
        for tile in bundle.tiles
        for name in bundle.manifest.components
    }


def engine_name(bundle: Bundle, component: str, tile: int) -> str:
    """What the engine of a component for tiles of that size is called: a name of `engine_variants`."""
    return component if tile == bundle.manifest.tile else f"{component}-{tile}"


def engine_cache() -> Path:
    """The folder of the user's cache that holds all engines."""
    return cache_folder() / "engines"


def engine_folder(bundle: Bundle, library: Library, target: str, precision: str | None = None) -> Path:
    """The folder of the user's cache where these engines of a bundle belong; it need not exist.

    Engines of the bundle's own precision (None) and of others lie apart.
    """
    suffix = "" if precision in (None, bundle.manifest.precision) else f"-{precision}"
    return engine_cache() / bundle.sha256 / f"{library.name}-{library.version}-{target}{suffix}"


def read_record(folder: Path) -> EngineRecord:
    """The record of a folder of engines. Raises DeviceError if there is none, or it is damaged."""
    path = folder / RECORD_NAME
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_RECORD_BYTES + 1)
    except FileNotFoundError:
        raise DeviceError(f"{folder} holds no engines: it has no {RECORD_NAME}", hint="tudsr build") from None
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        if len(raw) > MAX_RECORD_BYTES:
            raise ValueError(f"larger than {MAX_RECORD_BYTES} bytes")
        return read_typed(EngineRecord, parse_json(raw), ValueError, whole="it")
    except ValueError as error:
        reason = str(error)[:200]
        raise DeviceError(f"{path} is damaged ({reason})", hint="build the engines again") from None


def library_of_engines(folder: Path, asked: str) -> str:
    """The library that made the engines in `folder`, which is the back end that runs them.

    Raises:
        UsageError: `asked`, if not "auto", is another back end.
        DeviceError: there are no engines.
    """
    library = read_record(folder).library
    if asked not in ("auto", library):
        raise UsageError(
            f"the engines in {folder} are of {library}, not of {asked}", hint=f"--backend {library}"
        )
    return library


def read_plan(folder: Path, plan: BuiltPlan) -> bytes:
    """The bytes of an engine, which are those that were built. Raises DeviceError if they are not."""
    path = folder / plan.file.path
    try:
        if path.is_symlink():
            raise DeviceError(f"{path} is a link; an engine must be a plain file")
        data = path.read_bytes()
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror or error}", hint="tudsr build") from error
    actual = hashlib.sha256(data).hexdigest()
    if actual != plan.file.sha256:
        raise DeviceError(
            f"{path} is not the engine that was built: sha256 {actual[:8]}..., "
            f"{RECORD_NAME} says {plan.file.sha256[:8]}...",
            hint="build the engines again",
        )
    return data
