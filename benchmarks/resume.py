"""What it takes to skip a folder that is finished, by the number of its pictures.

    python -m benchmarks.resume [--counts 2500 10000] [--repeats 3] [--bundle nano]

One picture is enlarged; the others, and their lines in the record, are copies under other names. Prints the
seconds of `tudsr upscale` over the whole folder, start-up included, the least of the repeats; and how a
picture's share of the time that is not start-up changes from the smallest folder to the largest: 1 where
skipping is linear.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from tudsr_runtime.batch.done import RECORD_FILE

TUDSR = Path(sys.executable).with_name("tudsr")


def prepare(folder: Path, bundle: str) -> None:
    """One picture in `in`, and its result and record in `out`."""
    (folder / "in").mkdir()
    Image.linear_gradient("L").resize((24, 16)).save(folder / "in" / "0.png")
    seconds(folder, bundle, 0)


def grow(folder: Path, start: int, count: int) -> None:
    """Copies of picture 0, its result and its line, as `start` to `count` - 1."""
    (line,) = (folder / "out" / RECORD_FILE).read_text().splitlines()[:1]
    done = json.loads(line)
    with open(folder / "out" / RECORD_FILE, "a") as file:
        for number in range(start, count):
            name, output = f"{number}.png", done["output"].replace("0", str(number), 1)
            shutil.copy(folder / "in" / "0.png", folder / "in" / name)
            shutil.copy(folder / "out" / done["output"], folder / "out" / output)
            file.write(json.dumps({**done, "input": name, "output": output}) + "\n")


def seconds(folder: Path, bundle: str, skipped: int) -> float:
    """Seconds of one run, which skips `skipped` pictures."""
    options = ["-o", folder / "out", "--scale", "2", "--bundle", bundle, "--json", "-q"]
    started = time.perf_counter()
    run = subprocess.run(
        [TUDSR, "upscale", folder / "in", *options], stdout=subprocess.PIPE, text=True, check=True
    )
    spent = time.perf_counter() - started
    summary = json.loads(run.stdout.splitlines()[-1])["summary"]
    if summary["skipped"] != skipped:
        raise SystemExit(f"{skipped} pictures were to be skipped: {summary}")
    return spent


def fastest(folder: Path, args: argparse.Namespace, skipped: int) -> float:
    """The least seconds of the repeats."""
    return min(seconds(folder, args.bundle, skipped) for _ in range(args.repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[2500, 10000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bundle", default="nano")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, before = Path(name), 1
        prepare(folder, args.bundle)
        start_up, shares = fastest(folder, args, 1), []
        sys.stdout.write(f"1 picture: {start_up:.2f} s, which is start-up\n")
        for count in sorted(args.counts):
            grow(folder, before, count)
            before, spent = count, fastest(folder, args, count)
            shares.append((spent - start_up) / count)
            sys.stdout.write(f"{count} pictures: {spent:.2f} s, {1e3 * shares[-1]:.2f} ms each\n")
    sys.stdout.write(
        f"a picture of the largest folder against one of the smallest: {shares[-1] / shares[0]:.2f}\n"
    )


if __name__ == "__main__":
    main()
