"""What an export is to make; known before PyTorch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tudsr_runtime.manifest import MeasuredPlan
from tudsr_runtime.tiling.axis import TILE


@dataclass(frozen=True)
class Shape:
    """A fixed size that a component is exported for."""

    batch: int
    tile: int

    def __str__(self) -> str:
        return f"batch {self.batch}, tile {self.tile}"


@dataclass(frozen=True)
class ExportPlan:
    """What to export, and where to."""

    base: Path
    adapters: Mapping[int, Path]
    """Adapter of stage 1, of stage 2, or of both, in any layout of `tudsr_export.layouts`."""
    output: Path
    precision: str
    """fp16 or fp32: the type of all weights, inputs and outputs."""
    name: str
    licence: str
    overwrite: bool = False
    tile: int = TILE
    about: str = ""
    """Markdown for the model card."""
    merge: bool = True
    """Whether adapters are merged into the weights, or stay as branches with weights of their own."""
    timesteps: Mapping[int, int] = field(default_factory=dict)
    """The timestep of each stage; one that is not in it takes its adapter's, else the paper's."""
    prompt: str | None = None
    """None: the adapter's, else the base's."""
    batches: tuple[int, ...] = ()
    """Further batch sizes of every graph, besides 1."""
    tiles: tuple[int, ...] | None = ()
    """Further tile sizes of every graph, besides `tile`; None: those that a base of its size gets."""
    plans: tuple[MeasuredPlan, ...] = ()
    """The factors that the bundle was measured to be good for."""
    light_decoder: Path | None = None
    """Folder of a light decoder to add; None for none."""
    vgg16: str | None = None
    """VGG16 of the DISTS that it is compared by; None: by PSNR alone."""

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Every size that graphs are exported for, the bundle's own first."""
        return _shapes(self.tile, self.batches, self.tiles or ())


@dataclass(frozen=True)
class NetworkPlan:
    """A checkpoint of a network that enlarges by itself, and where its bundle goes; as in `ExportPlan`."""

    checkpoint: Path
    output: Path
    precision: str
    name: str
    licence: str
    overwrite: bool = False
    tile: int = TILE
    """Px of what the network writes; the greatest that it can have up to this is taken."""
    about: str = ""
    batches: tuple[int, ...] = ()
    tiles: tuple[int, ...] | None = None
    plans: tuple[MeasuredPlan, ...] = ()
    base: Path | None = None
    """The base of a noise predictor of InvSR's; None for a network that spandrel reads."""
    timestep: int | None = None
    prompt: str | None = None

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Every size that graphs are exported for, the bundle's own first."""
        return _shapes(self.tile, self.batches, self.tiles or ())


def _shapes(tile: int, batches: tuple[int, ...], tiles: tuple[int, ...]) -> tuple[Shape, ...]:
    more = (*(Shape(n, tile) for n in batches), *(Shape(1, edge) for edge in tiles))
    return tuple(dict.fromkeys((Shape(1, tile), *more)))
