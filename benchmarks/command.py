"""What the installed command takes for 256 x 256 to 2048 x 2048: tiles, seconds, peak memory.

    python -m benchmarks.command [--bundle nano] [--backend auto] [--repeats 3]

Runs `tudsr upscale` as a process of its own, start-up, reading and writing included; the picture is a detail
of scikit-image's astronaut. Prints the fastest run and the largest peak of resident memory.
"""

from __future__ import annotations

import argparse
import json
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


def run(bundle: str, backend: str, photo: Path) -> tuple[float, float]:
    """Seconds and peak resident memory in MB of one run of the command."""
    options = ["--scale", "8", "--bundle", bundle, "--backend", backend, "--overwrite", "-q"]
    command = [str(TUDSR), "upscale", str(photo), *options]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"the command failed with status {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_maxrss / 1024


def tiles(bundle: str, photo: Path) -> int:
    command = [str(TUDSR), "upscale", str(photo), "--bundle", bundle, "--dry-run", "--json", "-q"]
    first = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return int(json.loads(first)["tiles"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.png"
        Image.fromarray(data.astronaut()[:256, 128:384]).save(photo)
        count = tiles(args.bundle, photo)
        runs = [run(args.bundle, args.backend, photo) for _ in range(args.repeats)]
        with Image.open(Path(folder) / "photo_x8.png") as result:
            size = result.size
    sys.stdout.write(
        f"{platform.machine()}, {os.cpu_count()} CPUs: 256 x 256 to {size[0]} x {size[1]}, "
        f"{count} tiles, {min(s for s, _ in runs):.1f} s (of {args.repeats}), "
        f"peak {max(mb for _, mb in runs):.0f} MB\n"
    )


if __name__ == "__main__":
    main()
