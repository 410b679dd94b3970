"""Full-reference quality of a bundle against bicubic, on photographs that no training ever saw.

    python -m benchmarks.quality [--bundle nano] [--backend auto] [--realsr DIR]
                                 [-o benchmarks/results/quality_nano]

(a) Four photographs that ship with scikit-image, degraded from seeds 0 to 2: Gaussian blur of sigma
    U(0.2, 1.2) s / 2 pixels, reduced s times by area, bilinear or bicubic, noise of sigma U(0.004, 0.04),
    JPEG of quality 50 to 95; s = 4, 8.
(b) With --realsr: real pairs x4 in DIR/LR and DIR/HR (same file names), and, if DIR/osediff_metrics.csv is
    there, the scores that OSEDiff's authors published for the same pairs.

Names as in the paper's Tables 4 and 5: M4 is stage 1 alone at x4, N4 stage 2 alone at x4, M2N2 both;
likewise at x8. Metrics on Y of BT.601, those of `tudsr eval`: PSNR (dB), SSIM, and GMSD (lower is better).
Rivals and clean inputs: rivals.py.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data as skimage_data

from tudsr_runtime import Upscaler
from tudsr_runtime.metrics.fidelity import psnr_y, ssim_y
from tudsr_runtime.metrics.gmsd import gmsd_y

Floats = NDArray[np.float32]
Method = Callable[[Floats], Floats]

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
SEEDS = (0, 1, 2)
FACTORS = {4: ("4x-", "-x4", "2x2"), 8: ("8x-", "-x8", "4x2")}
NAMES = {"4x-": "M4", "-x4": "N4", "2x2": "M2N2", "8x-": "M8", "-x8": "N8", "4x2": "M4N2"}
TWICE = {4: "M2N2", 8: "M4N2"}
METRICS = ("psnr", "ssim", "gmsd")


@dataclass(frozen=True)
class Pair:
    """A degraded picture and what it should have been, float32 (H, W, 3) in [0, 1]."""

    name: str
    low: Floats
    high: Floats


def degrade(high: Floats, scale: int, seed: int) -> Floats:
    """The low-resolution picture of part (a), on 8-bit levels."""
    rng = np.random.default_rng([seed, scale])
    sigma = rng.uniform(0.2, 1.2) * scale / 2
    blurred = gaussian_filter(high, (sigma, sigma, 0))
    method = rng.choice([Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
    size = (high.shape[1] // scale, high.shape[0] // scale)
    low = resize(blurred, size, Image.Resampling(method))
    low = low + rng.normal(0, rng.uniform(0.004, 0.04), low.shape)
    file = io.BytesIO()
    to_8bit(low).save(file, "JPEG", quality=int(rng.integers(50, 96)))
    return from_8bit(Image.open(file))


def resize(x: Floats, size: tuple[int, int], method: Image.Resampling) -> Floats:
    channels = [Image.fromarray(np.ascontiguousarray(x[..., c])).resize(size, method) for c in range(3)]
    return np.stack([np.asarray(channel) for channel in channels], -1)


def to_8bit(x: Floats) -> Image.Image:
    return Image.fromarray((x.clip(0, 1) * 255 + 0.5).astype(np.uint8))


def from_8bit(image: Image.Image) -> Floats:
    return np.asarray(image.convert("RGB"), np.float32) / 255


def bicubic(low: Floats, scale: int) -> Floats:
    return resize(low, (low.shape[1] * scale, low.shape[0] * scale), Image.Resampling.BICUBIC)


def photographs(scale: int) -> Iterator[Pair]:
    for name in PHOTOGRAPHS:
        high = from_8bit(Image.fromarray(getattr(skimage_data, name)()))
        high = high[: high.shape[0] // scale * scale, : high.shape[1] // scale * scale]
        for seed in SEEDS:
            yield Pair(name, degrade(high, scale, seed), high)


def real_pairs(folder: Path) -> Iterator[Pair]:
    for path in sorted((folder / "LR").iterdir()):
        yield Pair(path.name, from_8bit(Image.open(path)), from_8bit(Image.open(folder / "HR" / path.name)))


def measure(result: Floats, high: Floats) -> dict[str, float]:
    """The three metrics of a result after rounding to 8 bits, as it would be saved."""
    x = from_8bit(to_8bit(result))
    return {"psnr": psnr_y(x, high), "ssim": ssim_y(x, high), "gmsd": gmsd_y(x, high)}


def compare(pairs: Iterator[Pair], methods: dict[str, Method]) -> dict[str, dict[str, dict[str, float]]]:
    """{method: {picture: {metric: mean over the picture's seeds}}}."""
    scores: dict[str, dict[str, list[dict[str, float]]]] = {name: defaultdict(list) for name in methods}
    for pair in pairs:
        for name, method in methods.items():
            scores[name][pair.name].append(measure(method(pair.low), pair.high))
        sys.stderr.write(f"  {pair.name}\n")
    return {
        name: {
            picture: {metric: float(np.mean([run[metric] for run in runs])) for metric in METRICS}
            for picture, runs in pictures.items()
        }
        for name, pictures in scores.items()
    }


def methods(upscaler: Upscaler, scale: int) -> dict[str, Method]:
    def with_factors(factors: str) -> Method:
        return lambda low: upscaler.upscale(low, scale=scale, factors=factors)

    learned = {NAMES[factors]: with_factors(factors) for factors in FACTORS[scale]}
    return {"bicubic": lambda low: bicubic(low, scale), **learned}


def mean(scores: dict[str, dict[str, float]], metric: str) -> float:
    return float(np.mean([picture[metric] for picture in scores.values()]))


def table(title: str, scores: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown, one row per method: means, gain over bicubic, the least gain, pictures gained on."""
    reference = scores["bicubic"]
    rows = [
        f"### {title}",
        "",
        "| method | PSNR-Y | SSIM | GMSD | gain, dB | worst picture, dB | better on |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, pictures in scores.items():
        gains = [pictures[p]["psnr"] - reference[p]["psnr"] for p in pictures]
        ahead = f"{sum(gain > 0 for gain in gains)} of {len(gains)}" if name != "bicubic" else ""
        rows.append(
            f"| {name} | {mean(pictures, 'psnr'):.3f} | {mean(pictures, 'ssim'):.4f} "
            f"| {mean(pictures, 'gmsd'):.4f} "
            f"| {np.mean(gains):+.3f} | {min(gains):+.3f} | {ahead} |"
        )
    return "\n".join(rows) + "\n"


def per_photograph(scores: dict[str, dict[str, dict[str, float]]], best: str) -> str:
    rows = [f"| photograph | bicubic | {best} | gain, dB |", "|---|---|---|---|"]
    for picture, reference in scores["bicubic"].items():
        value = scores[best][picture]["psnr"]
        gain = value - reference["psnr"]
        rows.append(f"| {picture} | {reference['psnr']:.3f} | {value:.3f} | {gain:+.3f} |")
    return "\n".join(rows) + "\n"


def published(folder: Path) -> str:
    """Line with OSEDiff's published means, where the file is there."""
    path = folder / "osediff_metrics.csv"
    if not path.is_file():
        return ""
    rows = list(csv.DictReader(path.open()))
    means = {metric: np.mean([float(row[metric]) for row in rows]) for metric in ("psnr", "ssim")}
    return (
        f"OSEDiff, published by its authors for the same {len(rows)} pairs: PSNR-Y {means['psnr']:.3f}, "
        f"SSIM {means['ssim']:.4f} (it imagines detail; these metrics do not reward that).\n"
    )


def heading(upscaler: Upscaler) -> str:
    """What was measured, by what, so that anyone can repeat it."""
    kept = ("bench", "docs")
    words = [word if "/" not in word or word.startswith(kept) else "DIR" for word in sys.argv[1:]]
    command, choice = " ".join(["python -m benchmarks.quality", *words]), upscaler.choice
    return (
        f"## Quality of bundle `{upscaler.bundle.manifest.name}`\n\n"
        f"`{command}`, {date.today()}; bundle sha256 {upscaler.bundle.sha256[:16]}; "
        f"{choice.backend} on {choice.device}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--realsr", type=Path, help="folder with LR/ and HR/ of real x4 pairs")
    parser.add_argument("-o", "--output", type=Path, help="write OUTPUT.md and OUTPUT.json")
    args = parser.parse_args()

    record = {}
    with Upscaler(args.bundle, args.backend) as upscaler:
        report = [heading(upscaler)]
        for scale in (4, 8):
            scores = compare(photographs(scale), methods(upscaler, scale))
            record[f"photographs_x{scale}"] = scores
            title = f"Photographs of scikit-image, x{scale} (mean over seeds {SEEDS[0]} to {SEEDS[-1]})"
            report += [table(title, scores), per_photograph(scores, TWICE[scale])]
        if args.realsr:
            scores = compare(real_pairs(args.realsr), methods(upscaler, 4))
            record["realsr_x4"] = scores
            report += [table("RealSR, 100 real pairs, x4", scores), published(args.realsr)]
    text = "\n".join(report)
    sys.stdout.write(text)
    if args.output:
        args.output.with_suffix(".md").write_text(text)
        args.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
