"""The four rows of the paper's Table 3: tudsr, and its rivals' tile plans on the same networks, in one run.

    python -m benchmarks.table3 --bundle BUNDLE [--size full|tiny] [--device cuda] [--dtype float16]
        [--rows 4] [--warmup 1] [--rounds 3] [--backend auto] [--engines DIR] [--compile]

Both sides run on --device, or the command ends with exit code 6. The rivals are
`benchmarks/peers/pipelines.py`, plain diffusers with random weights of the same architecture (random weights
take as long as trained ones), in channels-last, half under autocast, eager and with --compile compiled too;
BUNDLE is an export of it or of a real base. All are timed in turn, row by row, after --warmup rounds. Before
that, it says how long it will take.

TMAC: the multiply-adds of each plan, tudsr's as its bundle counts them, the rivals' as PyTorch does. Limit:
what tudsr's plan takes at the rate of this device's matrix multiplication, measured in the same run, which
nothing in that arithmetic can beat; half with sums in float32 and in half are named apart. On another GPU
than the paper's H800 the published column is no competitor, only a reference.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.full_size import networks
from benchmarks.peers.pipelines import Networks, coupled, latent_tiles
from tudsr_runtime import Upscaler
from tudsr_runtime.bench.latency import sample_picture
from tudsr_runtime.bench.measure import Durations, describe_clocks, describe_machine, describe_memory
from tudsr_runtime.bench.table3 import PUBLISHED, PUBLISHED_GPU, Published
from tudsr_runtime.errors import DeviceError, TudsrError
from tudsr_runtime.tiling.plan import Plan

Rival = Callable[[Networks, Tensor, int], Tensor]
RIVALS: dict[str, Rival] = {"latent tiles 96/32": latent_tiles, "coupled 64/32, batch 8": coupled}


@dataclass(frozen=True)
class Contender:
    """One column: what is timed for a row."""

    name: str
    run: Callable[[Published], object]


def matrix_rates(device: str, dtype: torch.dtype) -> dict[str, float]:
    """TFLOP/s of the fastest of ten products of two matrices, by the type that sums are kept in."""
    if device != "cuda" or dtype != torch.float16:
        return {"": matrix_rate(device, dtype)}
    rates = {}
    before = torch.backends.cuda.matmul.allow_fp16_accumulation
    for name, allowed in (("sums in float32", False), ("sums in half", True)):
        torch.backends.cuda.matmul.allow_fp16_accumulation = allowed
        rates[name] = matrix_rate(device, dtype)
    torch.backends.cuda.matmul.allow_fp16_accumulation = before
    return rates


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    side = 8192 if device == "cuda" else 1024
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


def picture(row: Published, device: str) -> Tensor:
    """A row's input, (1, 3, h, w) in [-1, 1]."""
    levels = torch.from_numpy(sample_picture(row.side, row.side).copy())
    return levels.permute(2, 0, 1)[None].to(device, torch.float32) / 127.5 - 1


def contenders(args: argparse.Namespace, upscaler: Upscaler, built: Networks) -> Iterator[Contender]:
    """tudsr, then the rivals, eager and compiled."""
    yield Contender("tudsr", lambda row: upscaler.upscale(sample_picture(row.side, row.side), row.scale))
    kinds = {"eager": built} | ({"compiled": compiled(made(args))} if args.compile else {})
    for name, rival in RIVALS.items():
        for kind, parts in kinds.items():
            yield Contender(f"{name}, {kind}", partial(run_rival, rival, parts, args))


def run_rival(rival: Rival, built: Networks, args: argparse.Namespace, row: Published) -> Tensor:
    with autocast(args), torch.inference_mode():
        return rival(built, picture(row, args.device).to(memory_format=torch.channels_last), row.scale)


def autocast(args: argparse.Namespace) -> AbstractContextManager[object]:
    if args.dtype == "float32":
        return nullcontext()
    return torch.autocast(args.device, getattr(torch, args.dtype))


def made(args: argparse.Namespace) -> Networks:
    """The rivals' networks; autocast makes half of float32 weights."""
    built = networks(args.size, torch.float32, args.device)
    for part in (built.vae, built.unet):
        part.to(memory_format=torch.channels_last)
    return built


def compiled(built: Networks) -> Networks:
    """The same, which is changed, compiled when it first runs."""
    for part in (built.vae.encoder, built.vae.decoder, built.unet):
        part.compile()
    return built


def counted_tmac(size: str, rival: Rival, row: Published) -> float:
    """What a rival's plan computes, without computing it."""
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        rival(networks(size, torch.float32, "meta"), torch.zeros(1, 3, row.side, row.side), row.scale)
    return counter.get_total_flops() / 2e12


def forecast(args: argparse.Namespace, columns: list[Contender], tmac: dict[str, list[float]]) -> float:
    """Seconds that all rows will take, by the first one: each column's rate stays about the same."""
    first = PUBLISHED[0]
    seconds = {
        one.name: min(clocked(partial(one.run, first), args.device) for _ in range(2)) for one in columns
    }
    rounds = args.warmup + args.rounds
    return sum(rounds * seconds[one.name] * sum(tmac[plain(one)]) / tmac[plain(one)][0] for one in columns)


def plain(one: Contender) -> str:
    """A column's name without how it is run."""
    return one.name.removesuffix(", eager").removesuffix(", compiled")


def tudsr_tmac(plan: Plan, upscaler: Upscaler) -> float:
    found = [(stage.tiles, upscaler.bundle.macs(stage.stage, stage.columns.tile)) for stage in plan.stages]
    if None in [macs for _, macs in found]:
        raise SystemExit("the bundle counts no operations; export it again")
    return sum(tiles * (macs or 0) for tiles, macs in found) / 1e12


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--engines", type=Path)
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=("float16", "float32", "bfloat16"), default=None)
    parser.add_argument("--compile", action="store_true", help="time the rivals compiled too")
    parser.add_argument("--rows", type=int, default=len(PUBLISHED), help="how many, the cheapest first")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    args.dtype = args.dtype or ("float16" if args.device == "cuda" else "float32")
    return args


def main() -> None:
    args = arguments()
    try:
        if args.device == "cuda" and not torch.cuda.is_available():
            raise DeviceError("the rivals need PyTorch with CUDA, which is not there", hint="--device cpu")
        with Upscaler(args.bundle, args.backend, args.device, sanity=False, engines=args.engines) as upscaler:
            run(args, upscaler)
    except TudsrError as error:
        sys.stderr.write(f"error: {error}" + (f" ({error.hint})" if error.hint else "") + "\n")
        raise SystemExit(error.exit_code) from None


def run(args: argparse.Namespace, upscaler: Upscaler) -> None:
    rows = PUBLISHED[: args.rows]
    columns = list(contenders(args, upscaler, made(args)))
    tmac = {name: [counted_tmac(args.size, rival, row) for row in rows] for name, rival in RIVALS.items()}
    tmac["tudsr"] = [tudsr_tmac(row.plan(upscaler), upscaler) for row in rows]
    rates = matrix_rates(args.device, getattr(torch, args.dtype))
    expected = forecast(args, columns, tmac)
    sys.stderr.write(
        f"about {expected / 60:.0f} min for {len(rows)} rows of {args.warmup + args.rounds} rounds\n"
    )
    facts = describe_machine() | {
        "rivals": f"diffusers, {args.size} size, {args.dtype} on {args.device}, random weights",
        "tudsr": f"{args.bundle} by {upscaler.choice}",
        "runs": f"{args.rounds} after {args.warmup} for warm-up, all columns in turn; p50 / p90 in s",
    }
    facts |= {
        f"matrix product, {args.dtype} {name}".strip(): f"{rate:.2f} TFLOP/s" for name, rate in rates.items()
    }
    sys.stdout.write("".join(f"- {name}: {value}\n" for name, value in facts.items()))
    limits = [f"limit s {name}".strip() for name in rates]
    names = [
        "output",
        "scale",
        *(one.name for one in columns),
        f"published, {PUBLISHED_GPU}",
        "TMAC",
        *limits,
    ]
    sys.stdout.write(f"\n| {' | '.join(names)} |\n" + "|---" * len(names) + "|\n")
    for number, row in enumerate(rows):
        times = timed(args, columns, row)
        cost = [f"{name} {found[number]:.3g}" for name, found in tmac.items()]
        limit = [f"{2 * tmac['tudsr'][number] / rate:.3f}" for rate in rates.values()]
        cells = [f"{row.side * row.scale}", f"x{row.scale}", *(f"{t.p50:.3f} / {t.p90:.3f}" for t in times)]
        sys.stdout.write(f"| {' | '.join([*cells, str(row.seconds), ', '.join(cost), *limit])} |\n")
        sys.stdout.flush()
    after = describe_memory() | describe_clocks()
    sys.stdout.write("\n" + "".join(f"- {name}: {value}\n" for name, value in after.items()))


def timed(args: argparse.Namespace, columns: list[Contender], row: Published) -> list[Durations]:
    """Every column of a row, in turn."""
    spent: list[list[float]] = [[] for _ in columns]
    for _ in range(args.warmup + args.rounds):
        for column, seconds in zip(columns, spent, strict=True):
            seconds.append(clocked(partial(column.run, row), args.device))
    return [Durations.of(seconds[args.warmup :]) for seconds in spent]


if __name__ == "__main__":
    main()
