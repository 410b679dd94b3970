"""Are tile borders visible? Gradient energy of the same pixels, once on tile borders and once inside tiles.

    python -m benchmarks.seams --photos DIR [--count 20] [--scale 8] [--bundle nano] [--backend auto]

Each photograph is enlarged twice: as it is, and with a margin on its left and top that shifts the tile grid
by half a stride. The pixels in the middle of the overlaps of the first run lie inside tiles in the second.
A ratio of 1 means that nobody can tell; blending softens (below 1), a step at a border adds (above 1).
Constant pictures are enlarged as well: the largest deviation, in levels of 255.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tudsr_runtime import Upscaler
from tudsr_runtime.tiling.axis import Axis

Floats = NDArray[np.float32]

BAND = 8  # pixels on either side of the middle of an overlap


def border_pixels(axis: Axis) -> NDArray[np.bool_]:
    """Which pixels of an axis lie in the middle of an overlap of neighbouring tiles."""
    near = np.zeros(axis.length, np.bool_)
    for left, right in zip(axis.starts, axis.starts[1:], strict=False):
        middle = (left + axis.tile + right) // 2
        near[middle - BAND : middle + BAND] = True
    return near


def gradient_energy(image: Floats) -> Floats:
    """Squared forward differences, summed over axes and channels; (h, w)."""
    dx = np.diff(image, axis=1, append=image[:, -1:])
    dy = np.diff(image, axis=0, append=image[-1:])
    return (dx**2 + dy**2).sum(-1)


def energies(upscaler: Upscaler, photo: Floats, scale: int) -> tuple[float, float]:
    """Energy of the pixels on tile borders, and of the same pixels where the grid is shifted."""
    plan = upscaler.plan(photo.shape[1], photo.shape[0], scale)
    columns, rows = plan.stages[-1].columns, plan.stages[-1].rows
    stride = columns.starts[1] - columns.starts[0]
    margin = stride // 2 // scale
    shifted = np.pad(photo, ((margin, 0), (margin, 0), (0, 0)), mode="reflect")
    mask = border_pixels(rows)[:, None] | border_pixels(columns)[None]
    # the runs' own picture borders differ, and are no tile borders
    mask[:64], mask[-64:], mask[:, :64], mask[:, -64:] = False, False, False, False
    on_borders = gradient_energy(upscaler.upscale(photo, scale))
    inside = gradient_energy(upscaler.upscale(shifted, scale)[margin * scale :, margin * scale :])
    return float(on_borders[mask].sum()), float(inside[mask].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--scale", type=int, default=8)
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--backend", default="auto")
    args = parser.parse_args()
    total = np.zeros(2)
    with Upscaler(args.bundle, args.backend) as upscaler:
        for path in sorted(args.photos.iterdir())[: args.count]:
            photo = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
            pair = energies(upscaler, photo, args.scale)
            total += pair
            sys.stderr.write(f"  {path.name}: {pair[0] / pair[1]:.4f}\n")
        deviations = []
        for level in (0.0, 0.25, 0.5, 1.0):
            constant = np.full((96, 96, 3), level, np.float32)
            deviations.append(float(np.abs(upscaler.upscale(constant, args.scale) - level).max()) * 255)
    sys.stdout.write(
        f"gradient energy on tile borders / inside tiles, {args.count} photographs x{args.scale}: "
        f"{total[0] / total[1]:.4f}\n"
        f"constants 0, 64, 127.5, 255: largest deviation {max(deviations):.3f} levels of 255\n"
    )


if __name__ == "__main__":
    main()
