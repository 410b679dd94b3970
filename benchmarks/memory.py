"""Peak resident memory of the installed command, beside what it may take at most.

    python -m benchmarks.memory [--side 64 2048] [--scale 8] [--bundle nano] [-- OPTION...]

Runs `tudsr upscale` as a process of its own on a square detail of scikit-image's astronaut, enlarged if need
be, and writes PNG. The bars: 500 MB for 64 x 64 to 512 x 512; for a larger result 4 bytes per output px and
1 GB. Options after `--` go to the command. 2048 x 2048 by 8 is 2,390 tiles: many minutes on a CPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from skimage import data

TUDSR = Path(sys.executable).with_name("tudsr")
SMALL = 512 * 512
"""Output px up to which the bar is 500 MB."""


def bar(pixels: int) -> float:
    """Bytes that an output of that number of pixels may take."""
    return 500e6 if pixels <= SMALL else 4 * pixels + 1e9


def run(photo: Path, scale: float, bundle: str, options: list[str]) -> tuple[float, float]:
    """Seconds and peak resident memory in bytes of one run of the command."""
    command = [str(TUDSR), "upscale", str(photo), "--scale", f"{scale:g}", "--bundle", bundle, "-q", *options]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the command failed with status {os.waitstatus_to_exitcode(status)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - started, usage.ru_maxrss * unit


def measure(side: int, scale: float, bundle: str, options: list[str]) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.png")
        detail = Image.fromarray(data.astronaut()[:256, 128:384])
        detail.resize((side, side), Image.Resampling.LANCZOS).save(photo)
        seconds, peak = run(photo, scale, bundle, options)
        with Image.open(Path(folder, f"photo_x{scale:g}.png")) as result:
            width, height = result.size
    limit = bar(width * height)
    verdict = "within" if peak <= limit else "ABOVE"
    return (
        f"| {side} x {side} | {width} x {height} | {peak / 1e6:.0f} MB | {limit / 1e6:.0f} MB, {verdict} "
        f"| {peak / (width * height):.2f} | {seconds:.0f} s |"
    )


def main() -> None:
    Image.MAX_IMAGE_PIXELS = None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, nargs="+", default=[64, 2048])
    parser.add_argument("--scale", type=float, default=8)
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("options", nargs="*", metavar="OPTION")
    args = parser.parse_args()
    sys.stdout.write(
        f"{platform.machine()}, {os.cpu_count()} CPUs, {args.bundle} {' '.join(args.options)}\n\n"
    )
    sys.stdout.write(
        "| input | output | peak RSS | at most | bytes per output px | time |\n|---|---|---|---|---|---|\n"
    )
    for side in args.side:
        sys.stdout.write(measure(side, args.scale, args.bundle, args.options) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
