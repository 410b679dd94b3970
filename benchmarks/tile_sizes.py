"""What tiles by cost keep of the pictures, and what they save, against tiles of the bundle's own size alone.

    python -m benchmarks.tile_sizes --bundle BUNDLE [--photos DIR --count 4] [--first N] -o OUTPUT

BUNDLE has tiles of several sizes. Photographs (of scikit-image, and --count of DIR) are cut to squares of at
most 512 px, reduced four times, and enlarged by factors 4 x 2: the second stage has a canvas of 1024 px.
Three ways: tiles of the bundle's own size with an overlap of 128 px, of the largest size alone, by cost. Of
each: PSNR and SSIM (luma) of the result, reduced to the photograph's size, against the photograph; PSNR of
all pixels against the first way; seams (`tudsr_runtime.metrics.texture`); seconds of this process's processor
time for all photographs, the ways in turn, engines loaded. Writes OUTPUT.json and OUTPUT.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.plans import middle, photographs
from benchmarks.quality import Floats, from_8bit, measure, resize, to_8bit
from tudsr_runtime import Upscaler
from tudsr_runtime.bench.measure import describe_machine
from tudsr_runtime.metrics.fidelity import psnr
from tudsr_runtime.metrics.texture import seam_energy
from tudsr_runtime.tiling.axis import OVERLAP, Axis
from tudsr_runtime.tiling.plan import Plan

FACTORS, SCALE, LOW = "4x2", 8, 128


def ways(bundle: str, backend: str) -> dict[str, Upscaler]:
    own = Upscaler(bundle, backend, overlap=OVERLAP)
    tile, sizes = own.bundle.manifest.tile, own.bundle.tiles
    return {
        f"{tile} px alone, overlap {OVERLAP}": Upscaler(own.bundle, backend, overlap=OVERLAP, tile=tile),
        f"{sizes[0]} px alone": Upscaler(own.bundle, backend, tile=sizes[0]),
        "by cost": Upscaler(own.bundle, backend),
    }


def middles(axis: Axis) -> list[int]:
    pairs = itertools.pairwise(axis.starts)
    return [(left + axis.tile + right) // 2 for left, right in pairs]


def figures(result: Floats, high: Floats, low: Floats, first: Floats, plan: Plan) -> dict[str, float]:
    reduced = resize(result, (high.shape[1], high.shape[0]), Image.Resampling.BOX)
    found = measure(reduced, high)
    last = plan.stages[-1]
    plain = resize(low, (result.shape[1], result.shape[0]), Image.Resampling.BICUBIC)
    seams = seam_energy(result, plain, middles(last.columns), middles(last.rows))
    same = min(psnr(result, first), 200.0)
    return {"psnr_db": found["psnr"], "ssim": found["ssim"], "against_first_db": same, "seams": seams}


def compare(upscalers: dict[str, Upscaler], photos: list[Floats]) -> list[dict[str, Any]]:
    plans = {name: one.plan(LOW, LOW, SCALE, FACTORS) for name, one in upscalers.items()}
    each: dict[str, list[dict[str, float]]] = {name: [] for name in upscalers}
    seconds = dict.fromkeys(upscalers, 0.0)
    for upscaler in upscalers.values():
        upscaler.upscale(np.zeros((LOW, LOW, 3), np.float32), SCALE, FACTORS)
    for photo in photos:
        high = middle(photo, 4, LOW)
        low = from_8bit(to_8bit(resize(high, (high.shape[1] // 4, high.shape[0] // 4), Image.Resampling.BOX)))
        results: list[Floats] = []
        for name, upscaler in upscalers.items():
            started = time.process_time()
            results.append(upscaler.upscale(low, SCALE, FACTORS))
            seconds[name] += time.process_time() - started
            plan = upscaler.plan(low.shape[1], low.shape[0], SCALE, FACTORS)
            each[name].append(figures(results[-1], high, low, results[0], plan))
            sys.stderr.write(f"{name}: {each[name][-1]}\n")
    return [
        {
            "way": name,
            "tiles": [f"{stage.tiles} of {stage.columns.tile} px" for stage in plans[name].stages],
            "tmac": plans[name].cost,
            "cpu_seconds": seconds[name],
            **{key: float(np.mean([one[key] for one in each[name]])) for key in each[name][0]},
        }
        for name in upscalers
    ]


def markdown(rows: list[dict[str, Any]], title: str) -> str:
    lines = [
        title,
        "",
        "| tiles | | cost | CPU s | PSNR dB | SSIM | against the first dB | seams |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['way']} | {', '.join(row['tiles'])} | {row['tmac']:.3f} | {row['cpu_seconds']:.1f} "
            f"| {row['psnr_db']:.3f} | {row['ssim']:.4f} | {row['against_first_db']:.1f} "
            f"| {row['seams']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--first", type=int, help="only so many of the photographs")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    upscalers = ways(args.bundle, args.backend)
    photos = list(photographs(args.photos or Path(), args.count if args.photos else 0))
    photos = photos[: args.first]
    rows = compare(upscalers, photos)
    named = next(iter(upscalers.values()))
    title = f"{named.bundle.manifest.name}, {named.choice}, {len(photos)} photographs"
    record = {"bundle": named.bundle.sha256, "machine": describe_machine(), "title": title, "ways": rows}
    args.output.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    args.output.with_suffix(".md").write_text(markdown(rows, title))
    sys.stdout.write(markdown(rows, title))


if __name__ == "__main__":
    main()
