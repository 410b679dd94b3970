"""The bundle: a folder with `bundle.json`, ONNX graphs and a model card, checked before it is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from itertools import product
from pathlib import Path

from tudsr_runtime.errors import BundleError, UsageError, quoted
from tudsr_runtime.files import file_sha256
from tudsr_runtime.hub.links import is_snapshot, without_links
from tudsr_runtime.hub.names import is_hub_name, parse_name
from tudsr_runtime.manifest import BundleFile, Manifest, Variant

BUILTIN_BUNDLES = ("nano",)
MANIFEST_NAME = "bundle.json"
DECODERS = ("full", "light")
"""What may decode, where a bundle has both: the base's own decoder, and a smaller one distilled from it."""
MAX_MANIFEST_BYTES = 1 << 20
UNLISTED = frozenset({MANIFEST_NAME, "README.md", "LICENSE", "NOTICE"})
"""Files that a bundle may hold without listing them: none of them is ever loaded as part of a model."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Immutable, so it may be shared between threads.

    `sha256` is that of the bytes of bundle.json, which in turn holds the hash of every other file. `decoder`
    is the one of `DECODERS` that its stages run with.
    """

    folder: Path
    manifest: Manifest
    sha256: str
    decoder: str = DECODERS[0]
    _sound: set[BundleFile] = field(default_factory=set, compare=False, repr=False)

    def with_decoder(self, name: str) -> Bundle:
        """The same bundle, whose stages run with the decoder of that name.

        Raises:
            UsageError: no such name. BundleError: the bundle has no light decoder.
        """
        if name not in DECODERS:
            raise UsageError(f"decoder must be {' or '.join(DECODERS)}, not {quoted(name)}")
        if name not in self.decoders:
            raise BundleError(
                f"bundle {self.manifest.name} has no light decoder",
                hint="--decoder full; tudsr export --light-decoder adds one (docs/light-decoder.md)",
            )
        return dataclasses.replace(self, decoder=name)

    @property
    def title(self) -> str:
        """What people call it: its name, with the decoder where that is not its own."""
        light = "" if self.decoder == DECODERS[0] else f" with its {self.decoder} decoder"
        return self.manifest.name + light

    @property
    def decoders(self) -> tuple[str, ...]:
        """Those of `DECODERS` that the bundle has."""
        return DECODERS if self.manifest.has_light_decoders else DECODERS[:1]

    def parts(self, stage: int) -> tuple[str, ...]:
        """The components that a stage (from 0) runs: encoder, UNet and decoder, or a network."""
        found = self.manifest.stages[stage]
        return (*found.components[:-1], found.decoders[-1]) if self.decoder == "light" else found.components

    @property
    def running(self) -> frozenset[str]:
        """The components that any stage runs."""
        return frozenset(part for stage in range(len(self.manifest.stages)) for part in self.parts(stage))

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions in which every component has a graph, the bundle's own first."""
        sets = [{v.precision for v in c.variants} for c in self.manifest.components.values()]
        common = set.intersection(*sets)
        return tuple(sorted(common, key=lambda name: (name != self.manifest.precision, name)))

    @property
    def tiles(self) -> tuple[int, ...]:
        """The tile sizes in px in which every component has a graph, the greatest first."""
        sets = [{v.tile for v in c.variants if v.batch == 1} for c in self.manifest.components.values()]
        return tuple(sorted(set.intersection(*sets), reverse=True))

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """(stage from 0, size of tile in px) of all that there is."""
        return tuple(product(range(len(self.manifest.stages)), self.tiles))

    @property
    def bytes(self) -> int:
        """Size of all graphs and weights that the manifest lists."""
        return sum(file.bytes for file in self.manifest.files())

    def variant(
        self,
        component: str,
        *,
        precision: str | None = None,
        preferred: str | None = None,
        tile: int | None = None,
        batch: int = 1,
    ) -> Variant:
        """The first variant of `component` that fits (`None`: any precision; the bundle's own tile), one of
        the `preferred` precision if there is one.

        Raises:
            BundleError: no such component, or no variant of it fits.
        """
        found = self.manifest.components.get(component)
        if found is None:
            known = ", ".join(self.manifest.components)
            raise BundleError(f"bundle {self.manifest.name} has no component {component!r}; it has {known}")
        tile = self.manifest.tile if tile is None else tile
        for variant in sorted(found.variants, key=lambda v: v.precision != preferred):
            if variant.batch == batch and variant.tile == tile and precision in (None, variant.precision):
                return variant
        offers = "; ".join(f"{v.precision} batch {v.batch} tile {v.tile}" for v in found.variants)
        raise BundleError(
            f"bundle {self.manifest.name}: {component} has no variant with precision {precision or 'any'}, "
            f"batch {batch}, tile {tile}; it has: {offers}"
        )

    def check(self, files: Iterable[BundleFile] | None = None) -> None:
        """Compare files (None: all) with the hashes in the manifest, each once in the life of this object.

        Raises:
            BundleError: one is damaged or cannot be read.
        """
        for file in self.manifest.files() if files is None else files:
            if file not in self._sound:
                _check_hash(self.folder / file.path, file)
                self._sound.add(file)

    def macs(self, stage: int, tile: int) -> int | None:
        """Multiply-adds of one tile of that size through a stage (from 0); None if the bundle does not say.

        Raises BundleError: a component has no graph of that size.
        """
        each = [self.variant(name, tile=tile).macs for name in self.parts(stage)]
        return None if None in each else sum(macs for macs in each if macs is not None)

    def weights(self, stage: int, tile: int, precision: str | None = None) -> int:
        """Bytes on disk of a stage's graphs for tiles of that size, with the weights that they share.

        Raises BundleError: a component has no graph of that size.
        """
        files = {
            f for name in self.parts(stage) for f in self.variant(name, preferred=precision, tile=tile).files
        }
        return sum(file.bytes for file in files)

    def source_edge(self, stage: int, tile: int) -> int:
        """Px a side of what a stage (from 0) reads for a tile of that size."""
        return self.manifest.stages[stage].source_edge(tile)

    def path(self, variant: Variant) -> Path:
        """Where the ONNX graph of `variant` lies."""
        return self.folder / variant.model


def open_bundle(
    name_or_dir: str | Path, verify: bool = True, notify: Callable[[str], None] = lambda _: None
) -> Bundle:
    """Open the built-in bundle of that name ("nano"), one of the hub ("hf:OWNER/NAME", downloaded if it is
    not in the cache, which `notify` is told), else the bundle in that folder.

    Checked always: the manifest, that every listed file is there with its size, that nothing else is there,
    that nothing is a link. With `verify` also the sha256 of every file (all bytes are read).

    Raises:
        BundleError: no bundle there, a check failed, or the hub cannot be reached.
        UsageError: no name of the hub. DeviceError: huggingface_hub is not installed, and is needed.
    """
    folder = _of_hub(str(name_or_dir), notify) if is_hub_name(name_or_dir) else _locate(name_or_dir)
    if is_snapshot(folder):
        folder = without_links(folder)
    raw = _read_manifest(folder)
    try:
        manifest = Manifest.from_json(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise BundleError(f"{folder / MANIFEST_NAME} is not UTF-8 text") from None
    except BundleError as error:
        raise BundleError(f"{folder / MANIFEST_NAME}: {error}", hint=error.hint) from None
    try:
        _check_files(folder, manifest)
    except OSError as error:
        raise BundleError(f"cannot read the bundle {folder}: {error.strerror or error}") from error
    bundle = Bundle(folder, manifest, hashlib.sha256(raw).hexdigest())
    if verify:
        bundle.check()
    return bundle


def _of_hub(name: str, notify: Callable[[str], None]) -> Path:
    from tudsr_runtime.hub.transfer import local_folder

    return local_folder(parse_name(name), notify)


def _locate(name_or_dir: str | Path) -> Path:
    if name_or_dir in BUILTIN_BUNDLES:
        folder = Path(str(resources.files("tudsr_runtime"))) / "bundles" / str(name_or_dir)
    else:
        folder = Path(name_or_dir)
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        raise BundleError(
            f"no bundle {str(name_or_dir)!r}: {folder} is not a folder",
            hint=f"a folder with a {MANIFEST_NAME}, {', '.join(BUILTIN_BUNDLES)}, or {_on_hub(name_or_dir)}",
        )
    return folder


def _on_hub(name: str | Path) -> str:
    """How that name, or any, is written for a bundle of the hub."""
    try:
        return f"{parse_name(str(name))} if it is on the hub"
    except UsageError:
        return "hf:OWNER/NAME"


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST_NAME
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BundleError(f"{path} is not a plain file")
        with open(path, "rb") as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST_NAME}") from None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
    return raw


def _check_hash(path: Path, file: BundleFile) -> None:
    try:
        actual = file_sha256(path)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}") from error
    if actual != file.sha256:
        raise BundleError(
            f"{path} is damaged: sha256 {actual[:8]}..., the manifest says {file.sha256[:8]}..."
        )


def _check_files(folder: Path, manifest: Manifest) -> None:
    present = dict(_walk(folder))
    listed = {file.path: file for file in manifest.files()}
    _refuse(folder, "lacks files that its manifest lists", listed.keys() - present.keys())
    _refuse(folder, "holds files that its manifest does not list", present.keys() - listed.keys() - UNLISTED)
    for name, file in listed.items():
        if present[name] != file.bytes:
            raise BundleError(
                f"{folder / name} is damaged: {present[name]} bytes, the manifest says {file.bytes}"
            )


def _refuse(folder: Path, what: str, names: set[str]) -> None:
    if names:
        shown = sorted(names)
        more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
        raise BundleError(f"{folder} {what}: {', '.join(map(repr, shown[:3]))}{more}")


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Relative path and size of every file in the folder and its subfolders.

    An unlisted file is refused because a graph may name any file of its folder as its external weights.
    """
    for path in sorted(folder.iterdir()):
        name = prefix + path.name
        if path.is_symlink():
            raise BundleError(f"{path} is a link; a bundle may hold only plain files")
        if path.is_dir() and not prefix:
            yield from _walk(path, f"{name}/")
        elif path.is_file():
            yield name, path.stat().st_size
        else:
            raise BundleError(f"{path} does not belong in a bundle")
