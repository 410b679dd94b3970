"""The picture and the figures of docs/seamless.md: the step where the edges of a texture meet.

python -m benchmarks.seamless -o docs/seamless.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tudsr_runtime import Upscaler

SIDE, SCALE = 96, 4
SHOWN, ZOOM, GAP = 160, 4, 12
"""Px of the result around the place where the four corners meet, their enlargement, and between the two."""


def texture(side: int) -> NDArray[np.float32]:
    """Noise (side, side, 3) without a seam, of all frequencies that the side holds, in [0, 1]."""
    spectrum = np.fft.rfft2(np.random.default_rng(3).normal(size=(side, side)))
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
    noise = np.fft.irfft2(spectrum / (0.03 + np.hypot(rows, columns)), (side, side))
    grey = 0.5 + 0.12 * (noise - noise.mean()) / noise.std()
    return np.repeat(grey[..., None], 3, axis=2).clip(0, 1).astype(np.float32)


def steps(picture: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Mean difference of each line from the one before it; the first from the last, over the edge."""
    found: NDArray[np.float32] = np.abs(picture - np.roll(picture, 1, axis)).mean((1 - axis, 2))
    return found


def corners(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """What lies around the place where the four corners meet."""
    return np.roll(picture, (SHOWN // 2, SHOWN // 2), (0, 1))[:SHOWN, :SHOWN]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    small, shown = texture(SIDE), []
    for wrap in ("none", "xy"):
        with Upscaler(args.bundle, wrap=wrap) as upscaler:
            large = upscaler.upscale(small, SCALE)
        for axis, edges in ((1, "left and right"), (0, "above and below")):
            over, inside = steps(large, axis)[0], steps(large, axis)[1:]
            figures = f"{255 * over:.1f} levels, inside at most {255 * inside.max():.1f}"
            print(f"--wrap {wrap}, {edges}: {figures}")  # noqa: T201
        shown += [corners(large), np.ones((SHOWN, GAP // ZOOM, 3), np.float32)]
    sheet = Image.fromarray((np.concatenate(shown[:-1], axis=1) * 255 + 0.5).astype(np.uint8))
    sheet = sheet.resize((sheet.width * ZOOM, sheet.height * ZOOM), Image.Resampling.NEAREST)
    sheet.convert("L").save(args.output, optimize=True)


if __name__ == "__main__":
    main()
