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


@dataclass(frozen=True, kw_only=True)
class BundlePlan:
    """What every bundle needs, whatever its graphs are made from."""

    output: Path
    precision: str
    """fp16 or fp32: the type of all weights, inputs and outputs."""
    name: str
    licence: str
    overwrite: bool = False
    tile: int = TILE
    """Px of the main size of tiles; of a network, which has sizes of its own, the greatest that it may be."""
    about: str = ""
    """Markdown for the model card."""
    batches: tuple[int, ...] = ()
    """Further batch sizes of every graph, besides 1."""
    tiles: tuple[int, ...] | None = ()
    """Further tile sizes of every graph, besides `tile`; None: those that a model of its size gets."""
    plans: tuple[MeasuredPlan, ...] = ()
    """The factors that the bundle was measured to be good for."""

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Every size that graphs are exported for, the bundle's own first."""
        batches = (Shape(count, self.tile) for count in self.batches)
        tiles = (Shape(1, edge) for edge in self.tiles or ())
        return tuple(dict.fromkeys((Shape(1, self.tile), *batches, *tiles)))


@dataclass(frozen=True, kw_only=True)
class ExportPlan(BundlePlan):
    """A base and its adapters."""

    base: Path
    adapters: Mapping[int, Path]
    """Adapter of stage 1, of stage 2, or of both, in any layout of `tudsr_export.layouts`."""
    merge: bool = True
    """Whether adapters are merged into the weights, or stay as branches with weights of their own."""
    timesteps: Mapping[int, int] = field(default_factory=dict)
    """The timestep of each stage; one that is not in it takes its adapter's, else the paper's."""
    prompt: str | None = None
    """None: the adapter's, else the base's."""
    light_decoder: Path | None = None
    """Folder of a light decoder to add; None for none."""
    vgg16: str | None = None
    """VGG16 of the DISTS that it is compared by; None: by PSNR alone."""


@dataclass(frozen=True, kw_only=True)
class NetworkPlan(BundlePlan):
    """A checkpoint of a network that enlarges by itself."""

    checkpoint: Path
    base: Path | None = None
    """The base of a noise predictor of InvSR's; None for a network that spandrel reads."""
    timestep: int | None = None
    prompt: str | None = None
