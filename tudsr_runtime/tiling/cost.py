"""Which size of tile a canvas is cut into: the one whose tiles take the least, of those that a bundle has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tudsr_runtime.tiling.axis import Axis, plan_axis

SAVING_WORTH_A_SEAM = 0.05
"""Share of the cost that more tiles must save at least: a seam less is worth more than that."""
TMAC, SECONDS = "TMAC", "s"


@dataclass(frozen=True)
class TileCosts:
    """What one tile takes, by stage (from 0) and size in px: in TMAC (10^12 multiply-adds) or seconds.

    `reason` says where the figures are from.
    """

    per_tile: Mapping[tuple[int, int], float]
    unit: str = TMAC
    reason: str = "operations counted in the graphs"


@dataclass(frozen=True)
class Cut:
    """A canvas cut into tiles along both axes; `cost` in the unit of `TileCosts`, None where unknown."""

    columns: Axis
    rows: Axis
    cost: float | None = None

    @property
    def tile(self) -> int:
        """The tiles' edge in px."""
        return self.columns.tile

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.columns.starts) * len(self.rows.starts)

    @property
    def turned(self) -> Cut:
        """The same of the transposed canvas."""
        return replace(self, columns=self.rows, rows=self.columns)


def cuts(
    width: int,
    height: int,
    stage: int,
    sizes: Sequence[int],
    overlap: int,
    costs: TileCosts | None,
    step: int = 1,
) -> tuple[Cut, ...]:
    """The ways to cut a canvas for `stage`, the one to take first.

    With costs, the cheapest; of those that are hardly dearer, the one of the fewest tiles. Without, the
    smallest size that holds the whole canvas, else the greatest. A size whose half is less than `overlap` is
    considered only where it needs no overlap. Tiles start at multiples of `step` px.

    Raises:
        ValueError: `overlap` is less than tiles need, or more than half of the greatest size.
    """
    greatest = max(sizes)
    plan_axis(1, greatest, overlap)  # Rejects an overlap that cannot be.
    edge = max(width, height)
    if costs is None:
        size = min((size for size in sizes if size >= edge), default=greatest)
        return (_cut(width, height, size, overlap, step),)
    possible = [size for size in sizes if size >= edge or overlap <= size // 2]
    found = [
        _cut(width, height, size, overlap, step, costs.per_tile[stage, size])
        for size in sorted(possible, reverse=True)
    ]
    found.sort(key=lambda cut: cut.cost or 0)
    limit = (found[0].cost or 0) * (1 + SAVING_WORTH_A_SEAM)
    best = min((cut for cut in found if (cut.cost or 0) <= limit), key=lambda cut: cut.tiles)
    return (best, *(cut for cut in found if cut is not best))


def _cut(width: int, height: int, size: int, overlap: int, step: int, each: float | None = None) -> Cut:
    least = min(overlap, size // 2)
    columns, rows = (plan_axis(side, size, least, step) for side in (width, height))
    tiles = len(columns.starts) * len(rows.starts)
    return Cut(columns, rows, None if each is None else each * tiles)
