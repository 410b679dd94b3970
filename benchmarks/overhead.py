"""How much does tudsr cost besides its engines? `nano`, 256 x 256 to 2048 x 2048, on the CPU.

    python -m benchmarks.overhead [--backend openvino onnxruntime] [--rounds 5] [--bundle nano]

Each round runs, one after the other: all 34 tiles through the engines alone (as many at a time as the
pipeline runs), the enlargement from array to array with engines loaded, and from file to file (PNG to PNG,
engines loaded). Wall time says what a person waits, and is honest only on an idle machine; processor time
hardly depends on what else runs. Then the start-up, the fastest of 5: `import tudsr_runtime`,
`tudsr --help`, and whether either loads torch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from tudsr_runtime import Upscaler
from tudsr_runtime.bench.latency import run_engines, run_whole
from tudsr_runtime.bench.measure import describe_machine

BARS = {"array to array": 1.25, "file to file": 2.0}
START_BAR = 0.3


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def rounds(upscaler: Upscaler, count: int, folder: Path) -> dict[str, list[tuple[float, float]]]:
    image = np.ascontiguousarray(data.astronaut()[:256, 128:384])
    source, target = folder / "photo.png", folder / "large.png"
    Image.fromarray(image).save(source)
    plan = upscaler.plan(256, 256, 8)
    work: dict[str, Callable[[], object]] = {
        "engines": lambda: run_engines(upscaler, plan),
        "array to array": lambda: upscaler.upscale(image, 8),
        "file to file": lambda: run_whole(upscaler, source, target, 8),
    }
    for one in work.values():
        one()
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(count):
        for name, one in work.items():
            spent[name].append(clocked(one))
    return spent


def report(spent: dict[str, list[tuple[float, float]]]) -> None:
    medians = {
        name: tuple(statistics.median(found[clock] for found in runs) for clock in range(2))
        for name, runs in spent.items()
    }
    for name, (wall, processor) in medians.items():
        line = f"  {name:<15} {wall:7.2f} s, {processor:6.2f} s of processor time"
        if name in BARS:
            engine_wall, engine_processor = medians["engines"]
            line += (
                f"; {wall / engine_wall:.3f} x and {processor / engine_processor:.3f} x the engines' "
                f"(bar {BARS[name]} x)"
            )
        sys.stdout.write(line + "\n")


def start_up() -> None:
    tudsr = str(Path(sys.executable).with_name("tudsr"))
    commands = {
        "import tudsr_runtime": [sys.executable, "-c", "import tudsr_runtime"],
        "python alone": [sys.executable, "-c", "pass"],
        "tudsr --help": [tudsr, "--help"],
    }
    for name, command in commands.items():
        start = partial(subprocess.run, command, stdout=subprocess.DEVNULL, check=True)
        least = min(clocked(start)[0] for _ in range(5))
        sys.stdout.write(f"{name}: {least:.2f} s (bar {START_BAR} s)\n")
    code = "import sys, tudsr_runtime, cli; tudsr_runtime.Upscaler; print('torch' in sys.modules)"
    root = Path(__file__).parent.parent
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    sys.stdout.write(f"torch is loaded: {loaded.stdout.strip()}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", nargs="+", default=["openvino", "onnxruntime"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bundle", default="nano")
    args = parser.parse_args()
    sys.stdout.write(", ".join(f"{k} {v}" for k, v in describe_machine().items()) + "\n")
    for backend in args.backend:
        with tempfile.TemporaryDirectory() as folder, Upscaler(args.bundle, backend, "cpu") as upscaler:
            sys.stdout.write(f"{upscaler.choice}; {args.rounds} rounds, median\n")
            report(rounds(upscaler, args.rounds, Path(folder)))
    start_up()


if __name__ == "__main__":
    main()
