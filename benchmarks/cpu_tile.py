"""Seconds per 512 px tile and peak memory on the CPU: a bundle against plain diffusers, eager.

    python -m benchmarks.cpu_tile --bundle BUNDLE [--size full|tiny] [--rounds 3] [--backend openvino]

Diffusers runs `benchmarks/full_size.py` (random weights, which take as long as trained ones); BUNDLE is an
export of the same architecture. Each contender runs in a process of its own, float32 and bfloat16 in turn, so
that peak memory is its own; the first tile is for warm-up. In the end, how far the bundle's picture (of
scikit-image's astronaut) in bfloat16 is from the one in float32.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage import data

from tudsr_runtime.metrics.fidelity import psnr

CONTENDERS = ("tudsr fp32", "diffusers fp32", "tudsr bf16", "diffusers bf16")
BARS = {"fp32": 0.80, "bf16": 0.70}
MEMORY_BAR = 0.75


def one(name: str, args: argparse.Namespace) -> None:
    """Print the median seconds of a tile and the peak resident bytes of this process; keep the tile."""
    from tudsr_runtime.bench.measure import peak_resident

    library, precision = name.split()
    run = tudsr_tile(precision, args) if library == "tudsr" else diffusers_tile(precision, args)
    spent = []
    for _ in range(args.rounds + 1):
        started = time.perf_counter()
        made = run()
        spent.append(time.perf_counter() - started)
    sys.stdout.write(f"{statistics.median(spent[1:])} {peak_resident()}\n")
    np.save(args.keep / name, made)


def photograph() -> NDArray[np.float32]:
    """(1, 3, 512, 512), in [-1, 1]."""
    return data.astronaut().transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1


def tudsr_tile(precision: str, args: argparse.Namespace) -> Callable[[], NDArray[np.float32]]:
    from tudsr_runtime import Upscaler

    upscaler = Upscaler(args.bundle, args.backend, "cpu", precision=precision, sanity=False)
    runner = upscaler.stage(upscaler.plan(64, 64, 8).stages[0])
    x = photograph()
    return lambda: runner.run(x)


def diffusers_tile(precision: str, args: argparse.Namespace) -> Callable[[], NDArray[np.float32]]:
    import torch

    from benchmarks.full_size import networks

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    built = networks(args.size, dtype)
    x = torch.from_numpy(photograph()).to(dtype)

    def run() -> NDArray[np.float32]:
        with torch.inference_mode():
            return built.decode(built.denoise(built.encode(x))).float().numpy()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {name: apart(name, folder) for name in CONTENDERS}
        tiles = [np.load(Path(folder, f"tudsr {precision}.npy")) for precision in BARS]
    for precision, bar in BARS.items():
        ours, theirs = found[f"tudsr {precision}"], found[f"diffusers {precision}"]
        sys.stdout.write(
            f"{precision}: {ours[0] / theirs[0]:.2f} x the time of diffusers (bar {bar}), "
            f"{ours[1] / theirs[1]:.2f} x its memory (bar {MEMORY_BAR})\n"
        )
    decibels = psnr(*((tile.clip(-1, 1) + 1) / 2 for tile in tiles))
    sys.stdout.write(f"the bundle's picture in bf16 against fp32: {decibels:.1f} dB\n")


def apart(name: str, folder: str) -> tuple[float, float]:
    """Run one contender in a process of its own: seconds and bytes."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cpu_tile", *sys.argv[1:], "--one", name]
    printed = subprocess.check_output([*command, "--keep", folder], text=True)
    seconds, memory = map(float, printed.split())
    sys.stdout.write(f"{name:<15} {seconds:8.3f} s a tile, peak {memory / 1e9:.2f} GB\n")
    sys.stdout.flush()
    return seconds, memory


if __name__ == "__main__":
    main()
