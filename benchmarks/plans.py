"""Which factors a bundle is good for, measured: for every scale the plans that keep quality.

    python -m benchmarks.plans --bundle nano --photos DIR [--count 12] [--backend auto] [--vgg16 FILE] -o OUT

Writes OUT.json, which `tudsr export --plans` puts into a bundle, and OUT.md with all that was measured.

Pictures: squares out of the middle of the four photographs of `benchmarks/quality.py` and of `--count`
pictures of DIR, evenly spread over its names; LOW s pixels wide, at most 512. Each is reduced s times twice:
clean (by area) and degraded (the blur, noise and JPEG of `benchmarks/quality.py`, a seed of its own).

The rule. PSNR and SSIM (luma, as in `benchmarks/quality.py`) are averaged over the clean pictures, over the
degraded ones, and over both. A plan that costs no more than the one taken without figures is good if its
PSNR over both is at least the best one's less 0.1 dB and its SSIM at least the best one's less 0.003, and if
neither on the clean nor on the degraded pictures alone it loses more than that to the one taken without
figures. `texture` is the energy of gradients that a result has, as a share of the original's: 1 is right,
less is softer; it is shown, and plays no part in the rule.

With --vgg16 another rule holds, for models that are trained to look right rather than to be right on average
(PSNR and SSIM reward whatever does least): of the plans that cost no more than the one without figures those
are good whose `dists[...]`, averaged over clean and degraded pictures, is within 2 % of the best.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data as skimage_data

from benchmarks.quality import PHOTOGRAPHS, Floats, degrade, from_8bit, measure, resize, to_8bit
from tudsr_runtime import Upscaler
from tudsr_runtime.metrics.texture import texture_kept
from tudsr_runtime.tiling.plan import plan_upscale

CANDIDATES = {
    2: ("2x-", "-x2", "1x2", "2x1", "3x-", "-x3", "4x-", "-x4", "2x2"),
    3: ("3x-", "-x3", "1x3", "3x1", "4x-", "-x4", "2x2"),
    4: ("4x-", "-x4", "2x2"),
    8: ("8x-", "-x8", "4x2", "2x4"),
}
KINDS = ("clean", "degraded")
TOLERANCE = {"psnr_db": 0.1, "ssim": 0.003}
DISTS_TOLERANCE = 1.02
Judge = Callable[[Floats, Floats], float]
"""A distance of two pictures as they are to be looked at; 0 for equal ones."""
LARGEST = 512
Figures = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """One plan at one scale: its mean figures by kind of picture and over "both"."""

    factors: str
    default: bool
    cost: int
    figures: dict[str, Figures]


def photographs(folder: Path, count: int) -> Iterator[Floats]:
    """float32 (H, W, 3) in [0, 1]."""
    for name in PHOTOGRAPHS:
        yield from_8bit(Image.fromarray(getattr(skimage_data, name)()))
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".png", ".jpg", ".jpeg"})
    for index in range(count):
        yield from_8bit(Image.open(paths[index * len(paths) // count]))


def middle(photo: Floats, scale: int, low: int) -> Floats:
    """A square of at most `low` times `scale` pixels, a multiple of `scale`."""
    side = min(low * scale, LARGEST, *photo.shape[:2]) // scale * scale
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    return photo[top : top + side, left : left + side]


def reduced(high: Floats, scale: int, kind: str, seed: int) -> Floats:
    if kind == "degraded":
        return degrade(high, scale, seed)
    size = high.shape[1] // scale, high.shape[0] // scale
    return from_8bit(to_8bit(resize(high, size, Image.Resampling.BOX)))


def figures(result: Floats, high: Floats, judge: Judge | None) -> Figures:
    """Of a result after rounding to 8 bits, as it would be saved."""
    found, rounded = measure(result, high), from_8bit(to_8bit(result))
    learned = {} if judge is None else {"dists": judge(rounded, high)}
    return {
        "psnr_db": found["psnr"], "ssim": found["ssim"], "texture": texture_kept(rounded, high), **learned
    }  # fmt: skip


def dists_of(vgg16: Path) -> Judge:
    """DISTS through that VGG16, its weights averaged per stage."""
    import torch

    from tudsr_train.losses.dists import DISTS, DistsConfig

    network = DISTS.load(DistsConfig(str(vgg16), averaged=True))

    @torch.no_grad()
    def judge(x: Floats, y: Floats) -> float:
        pictures = (torch.from_numpy(np.ascontiguousarray(one.transpose(2, 0, 1)[None])) for one in (x, y))
        return float(network(*pictures).mean())

    return judge


def measure_plans(
    upscaler: Upscaler, photos: list[Floats], scale: int, low: int, judge: Judge | None = None
) -> list[Measured]:
    """All candidates at one scale that the bundle's stages allow."""
    stages = len(upscaler.bundle.manifest.stages)
    default = plan_upscale(LARGEST, LARGEST, scale, stages=stages)
    candidates = dict.fromkeys((*CANDIDATES[scale], default.notation))
    found = []
    for factors in candidates:
        if stages == 1 and not factors.endswith("-"):
            continue
        by_kind = {
            kind: mean(
                [
                    figures(upscaler.upscale(reduced(high, scale, kind, seed), scale, factors), high, judge)
                    for seed, photo in enumerate(photos)
                    for high in [middle(photo, scale, low)]
                ]
            )
            for kind in KINDS
        }
        by_kind["both"] = mean(list(by_kind.values()))
        cost = tile_pixels(scale, factors)
        found.append(Measured(factors, factors == default.notation, cost, by_kind))
        sys.stderr.write(f"x{scale} {factors}: {by_kind}\n")
    return found


def tile_pixels(scale: int, factors: str) -> int:
    """Pixels of all tiles for a picture of 512 x 512."""
    return sum(stage.tiles * stage.columns.tile**2 for stage in plan_upscale(512, 512, scale, factors).stages)


def mean(runs: list[Figures]) -> Figures:
    return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


def choose(found: list[Measured]) -> list[Measured]:
    """By the rule above, the cheapest first; the better one first of two that cost the same."""
    default = next(one for one in found if one.default)
    allowed = [one for one in found if one.cost <= default.cost]
    if "dists" in default.figures["both"]:
        least = min(one.figures["both"]["dists"] for one in allowed)
        near = [one for one in allowed if one.figures["both"]["dists"] <= DISTS_TOLERANCE * least]
        return sorted(near, key=lambda one: (one.cost, one.figures["both"]["dists"]))
    best = {name: max(one.figures["both"][name] for one in allowed) for name in TOLERANCE}
    good = [
        one
        for one in allowed
        if close(one.figures["both"], best)
        and all(close(one.figures[kind], default.figures[kind]) for kind in KINDS)
    ]
    return sorted(good, key=lambda one: (one.cost, -one.figures["both"]["psnr_db"]))


def close(figures: Figures, reference: Figures) -> bool:
    return all(figures[name] >= reference[name] - allowed for name, allowed in TOLERANCE.items())


def entries(scale: int, good: list[Measured]) -> list[dict[str, object]]:
    """As bundle.json has them."""
    digits = {"psnr_db": 2, "ssim": 4, "texture": 3}
    return [
        {
            "scale": float(scale),
            "factors": one.factors,
            **{name: round(one.figures["both"][name], digit) for name, digit in digits.items()},
        }
        for one in good
    ]


def table(scale: int, found: list[Measured], good: list[Measured]) -> str:
    rows = [
        f"### x{scale}",
        "",
        "| factors | tile pixels | PSNR-Y clean | degraded | both | SSIM clean | degraded | both "
        "| texture clean | degraded | dists clean | degraded | both | |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    default = next(one for one in found if one.default)
    for one in found:
        cells = [f"{one.figures[kind]['psnr_db']:.3f}" for kind in (*KINDS, "both")]
        cells += [f"{one.figures[kind]['ssim']:.4f}" for kind in (*KINDS, "both")]
        cells += [f"{one.figures[kind]['texture']:.3f}" for kind in KINDS]
        cells += [f"{one.figures[kind].get('dists', float('nan')):.4f}" for kind in (*KINDS, "both")]
        said = [
            "without figures" if one.default else "",
            "good" if one in good else "",
            "chosen" if good and one is good[0] else "",
        ]
        relative = f"{one.cost / default.cost:.2f}"
        rows.append(
            f"| {one.factors} | {relative} | {' | '.join(cells)} | {', '.join(s for s in said if s)} |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--photos", type=Path, required=True, help="folder of sharp photographs")
    parser.add_argument("--count", type=int, default=12, help="how many of them")
    parser.add_argument("--low", type=int, default=128, help="side of the reduced pictures at most, in px")
    parser.add_argument("--scales", type=int, nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--vgg16", type=Path, help="a VGG16 of torchvision's names: judge by dists")
    parser.add_argument("-o", "--output", type=Path, required=True, help="write OUTPUT.json and OUTPUT.md")
    args = parser.parse_args()

    photos = list(photographs(args.photos, args.count))
    judge = dists_of(args.vgg16) if args.vgg16 else None
    plans, tables = [], []
    with Upscaler(args.bundle, args.backend) as upscaler:
        for scale in args.scales:
            found = measure_plans(upscaler, photos, scale, args.low, judge)
            good = choose(found)
            plans += entries(scale, good)
            tables.append(table(scale, found, good))
        report = [heading(upscaler, len(photos)), *tables]
    args.output.with_suffix(".json").write_text(json.dumps(plans, indent=1) + "\n", encoding="utf-8")
    args.output.with_suffix(".md").write_text("\n".join(report), encoding="utf-8")
    sys.stdout.write("\n".join(report))


def heading(upscaler: Upscaler, count: int) -> str:
    words = [word if "/" not in word or word.startswith("benchmarks") else "DIR" for word in sys.argv[1:]]
    bundle, choice = upscaler.bundle, upscaler.choice
    return (
        f"## Which factors the bundle `{bundle.manifest.name}` is good for\n\n"
        f"`python -m benchmarks.plans {' '.join(words)}`, {date.today()}; {count} photographs; "
        f"bundle sha256 {bundle.sha256[:16]}; {choice.backend} on {choice.device}, "
        f"{choice.precision.name if choice.precision else bundle.manifest.precision}\n\n"
        "What was measured, and by which rule a plan is good, stands at the head of `benchmarks/plans.py`.\n"
        "Tile pixels, of a picture of 512 x 512, are relative to the plan that is taken without figures.\n"
    )


if __name__ == "__main__":
    main()
