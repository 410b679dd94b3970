"""Peak resident memory of the installed command, beside what it may take at most.

    python -m benchmarks.memory [--size 64x64 2048x2048 8000x200 200x8000] [--scale 8] [--limit MB]
        [--bundle nano] [-- OPTION...]

Runs `tudsr upscale` as a process of its own on a detail of scikit-image's astronaut, stretched to each size,
and writes PNG. The bars: 500 MB for 64 x 64 to 512 x 512; for a larger result 4 bytes per output px and 1 GB.
With `--limit` the process gets no more addresses than that (`ulimit -v`): it is to finish, or to end with
exit code 7, which the table says. Options after `--` go to the command. 2048 x 2048 by 8 is 2,390 tiles: many
minutes on a CPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from skimage import data

TUDSR = Path(sys.executable).with_name("tudsr")
SMALL = 512 * 512
"""Output px up to which the bar is 500 MB."""
OUT_OF_MEMORY = 7


def bar(pixels: int) -> float:
    """Bytes that an output of that number of pixels may take."""
    return 500e6 if pixels <= SMALL else 4 * pixels + 1e9


def limited(megabytes: int | None) -> Callable[[], None] | None:
    """What limits a process to so many addresses before it starts."""
    if megabytes is None:
        return None
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes * 10**6, megabytes * 10**6))


def run(
    photo: Path, scale: float, bundle: str, options: list[str], limit: int | None
) -> tuple[float, float, int]:
    """Seconds, peak resident memory in bytes and exit code of one run of the command."""
    command = [str(TUDSR), "upscale", str(photo), "--scale", f"{scale:g}", "--bundle", bundle, "-q", *options]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=limited(limit))
    _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    if code and not (limit and code == OUT_OF_MEMORY):
        raise SystemExit(f"the command failed with status {code}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - started, usage.ru_maxrss * unit, code


def measure(
    size: tuple[int, int], scale: float, bundle: str, options: list[str], limit: int | None = None
) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.png")
        detail = Image.fromarray(data.astronaut()[:256, 128:384])
        detail.resize(size, Image.Resampling.LANCZOS).save(photo)
        seconds, peak, code = run(photo, scale, bundle, options, limit)
        shown = f"{size[0]} x {size[1]}"
        if code:
            return f"| {shown} | refused, exit {code} | {peak / 1e6:.0f} MB | | | {seconds:.0f} s |"
        with Image.open(Path(folder, f"photo_x{scale:g}.png")) as result:
            width, height = result.size
    most = bar(width * height)
    verdict = "within" if peak <= most else "ABOVE"
    return (
        f"| {shown} | {width} x {height} | {peak / 1e6:.0f} MB | {most / 1e6:.0f} MB, {verdict} "
        f"| {peak / (width * height):.2f} | {seconds:.0f} s |"
    )


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) in px of "8000x200", or of "64" for a square."""
    width, _, height = text.partition("x")
    return int(width), int(height or width)


def main() -> None:
    Image.MAX_IMAGE_PIXELS = None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [(64, 64), (2048, 2048), (8000, 200), (200, 8000)]
    parser.add_argument("--size", type=parse_size, nargs="+", default=sizes, metavar="WxH")
    parser.add_argument("--scale", type=float, default=8)
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--limit", type=int, metavar="MB")
    parser.add_argument("options", nargs="*", metavar="OPTION")
    args = parser.parse_args()
    limit = f", at most {args.limit} MB of addresses" if args.limit else ""
    sys.stdout.write(
        f"{platform.machine()}, {os.cpu_count()} CPUs, {args.bundle} {' '.join(args.options)}{limit}\n\n"
    )
    sys.stdout.write(
        "| input | output | peak RSS | at most | bytes per output px | time |\n|---|---|---|---|---|---|\n"
    )
    for size in args.size:
        sys.stdout.write(measure(size, args.scale, args.bundle, args.options, args.limit) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
