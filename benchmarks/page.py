"""Forty pictures to look at one by one: what `nano`, Lanczos and Real-ESRGAN make of each.

    python -m benchmarks.page --realesrgan WHEEL --realsr DIR [--keep FOLDER] -o page
    tudsr eval page/lanczos page/x4plus page/nano --reference page/reference --input page/input -o page/report

The eight details of `rivals`, degraded and clean at x4 and degraded at x8, and the middles (512 px) of 16 of
RealSR's pairs, at even steps. Real-ESRGAN x4plus as in `rivals`, then Lanczos at x8. A folder a method,
for `tudsr eval`, whose page has them side by side.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.quality import Method, Pair, real_pairs, to_8bit
from benchmarks.rivals import at_scale, by_bundle, pairs, resized
from benchmarks.x4plus import Kept, RealESRGAN
from tudsr_runtime import Upscaler

SIDE = 512
REAL = 16
SYNTHETIC = (("degraded", 4), ("clean", 4), ("degraded", 8))


def subjects(realsr: Path) -> Iterator[tuple[str, int, Pair]]:
    """(name of a file without its ending, scale, the pair), forty of them."""
    for kind, scale in SYNTHETIC:
        for pair in pairs(kind, scale):
            yield f"{kind}-{pair.name.replace(' ', '-')}_x{scale}", scale, pair
    real = list(real_pairs(realsr))
    for number in range(REAL):
        pair = real[number * len(real) // REAL]
        yield f"real-{Path(pair.name).stem}_x4", 4, middle(pair, SIDE // 4)


def middle(pair: Pair, side: int) -> Pair:
    """The same pair's `side` x `side` middle, in pixels of the small picture, or all of a smaller one."""
    low, high = pair.low, pair.high
    top, left = (max(0, (edge - side) // 2) for edge in low.shape[:2])
    scale = high.shape[0] // low.shape[0]
    small = low[top : top + side, left : left + side]
    height, width = (scale * edge for edge in small.shape[:2])
    return Pair(pair.name, small, high[scale * top :, scale * left :][:height, :width])


def methods(upscaler: Upscaler, rival: Method, scale: int) -> dict[str, Method]:
    """By the folder of each."""
    return {
        "lanczos": partial(resized, scale=scale, method="lanczos3"),
        "x4plus": partial(at_scale, rival, scale),
        "nano": partial(by_bundle, upscaler, scale),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--realesrgan", type=Path, metavar="WHEEL", required=True)
    parser.add_argument("--realsr", type=Path, required=True, help="folder with LR/ and HR/ of real x4 pairs")
    parser.add_argument("--keep", type=Path, help="folder of Real-ESRGAN's results, for another run")
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    rival: Method = RealESRGAN(args.realesrgan, args.threads)
    if args.keep:
        rival = Kept(rival, args.keep)
    with Upscaler(args.bundle, threads=args.threads) as upscaler:
        for name, scale, pair in subjects(args.realsr):
            made = {method: of(pair.low) for method, of in methods(upscaler, rival, scale).items()}
            for folder, picture in {"input": pair.low, "reference": pair.high, **made}.items():
                (args.output / folder).mkdir(parents=True, exist_ok=True)
                to_8bit(picture).save(args.output / folder / f"{name}.png")


if __name__ == "__main__":
    main()
