"""The four rows of the paper's Table 3: tudsr, and its rivals' tile plans on the same networks, in one run.

    python -m benchmarks.table3 --bundle BUNDLE [--size full|tiny] [--device cuda] [--dtype float16]
                                [--rows 4] [--rounds 3] [--backend auto]

The rivals are `benchmarks/peers/pipelines.py`, plain diffusers with random weights of the same architecture
(random weights take as long as trained ones); BUNDLE is an export of it or of a real base. All are timed in
turn, row by row, after one round for warm-up. The last columns: the arithmetic of tudsr's plan, the rate of
this device's matrix multiplication measured in the same run, and their quotient, which nothing can beat. On
another GPU than the paper's H800 the published column is no competitor, only a reference.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.full_size import networks
from benchmarks.peers.pipelines import coupled, whole_vae
from tudsr_runtime import Upscaler
from tudsr_runtime.bench.latency import sample_picture
from tudsr_runtime.bench.measure import describe_machine
from tudsr_runtime.bench.table3 import PUBLISHED, PUBLISHED_GPU

TERAFLOP_PER_TILE = 4.44
"""Of a 512 px tile at full Stable Diffusion 2.1 size: 2.22 T multiply-adds, 82 % in the autoencoder."""


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """TFLOP/s of the fastest of ten products of two 4096 x 4096 matrices."""
    side = 4096 if device == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    seconds = min(clocked(lambda: a @ a, device) for _ in range(10))
    return 2 * side**3 / seconds / 1e12


def clocked(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--rows", type=int, default=len(PUBLISHED), help="how many, the cheapest first")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    built = networks(args.size, dtype, args.device)
    rate = matrix_rate(args.device, dtype)
    sys.stdout.write("".join(f"- {k}: {v}\n" for k, v in describe_machine().items()))
    sys.stdout.write(
        f"- rivals: diffusers, {args.size} size, {args.dtype} on {args.device}, random weights\n"
    )
    with Upscaler(args.bundle, args.backend, sanity=False) as upscaler, torch.inference_mode():
        sys.stdout.write(f"- tudsr: {args.bundle} by {upscaler.choice}\n- p50 of {args.rounds} rounds, s\n\n")
        sys.stdout.write(
            f"| output | scale | tudsr | whole VAE, 96/32 | coupled, 64/32 | published, {PUBLISHED_GPU} "
            "(different machine unless named above) | TFLOP of the plan | limit s |\n" + "|---" * 8 + "|\n"
        )
        for row in PUBLISHED[: args.rows]:
            image = sample_picture(row.side, row.side)
            x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].to(args.device, dtype) / 127.5 - 1
            work: list[Callable[[], object]] = [
                lambda image=image, s=row.scale: upscaler.upscale(image, s),
                lambda x=x, s=row.scale: whole_vae(built, x, s),
                lambda x=x, s=row.scale: coupled(built, x, s),
            ]
            spent = [[clocked(one, args.device) for one in work] for _ in range(args.rounds + 1)][1:]
            medians = [statistics.median(column) for column in zip(*spent, strict=True)]
            cost = TERAFLOP_PER_TILE * row.plan(upscaler).tiles
            limit = (f"{cost:.1f}", f"{cost / rate:.3f}") if args.size == "full" else ("-", "-")
            cells = [f"{row.side * row.scale}", f"x{row.scale}", *(f"{m:.3f}" for m in medians)]
            sys.stdout.write(f"| {' | '.join([*cells, str(row.seconds), *limit])} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
