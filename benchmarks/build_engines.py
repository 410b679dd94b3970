"""What `tudsr build` takes and makes: seconds, memory, and a line for every engine.

    python -m benchmarks.build_engines --bundle BUNDLE [--target sm89] [--engine tensorrt-rtx] [--tile 512]
        -o OUTPUT
    python -m benchmarks.build_engines --again OUTPUT

Runs the command as a process of its own, into a new folder that is removed afterwards; TensorRT for RTX needs
no GPU for that. Seconds are by the clock, and of that process's processor time, which other work on the
machine moves less. Writes OUTPUT.json and OUTPUT.md; --again writes the latter anew from the former. The
tables of docs/tensorrt.md are those of `benchmarks/results/build_*.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tudsr_runtime.bench.measure import describe_machine

TUDSR = Path(sys.executable).with_name("tudsr")


def build(bundle: str, options: list[str]) -> dict[str, Any]:
    """One build: what was spent on it, and the record of its engines."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["tudsr", "build", bundle, *options, "--json", "-q", "-o", str(Path(folder, "engines"))]
        started = time.perf_counter()
        with Path(folder, "printed").open("w+") as printed:
            process = subprocess.Popen([str(TUDSR), *command[1:]], stdout=printed)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"the command failed with status {process.returncode}")
            seconds = time.perf_counter() - started
            printed.seek(0)
            record = json.load(printed)
    return {
        "command": " ".join(["tudsr", "build", "BUNDLE", *options]),
        "machine": describe_machine(),
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_bytes": usage.ru_maxrss * 1024,
        **{key: record[key] for key in ("bundle", "library", "version", "target")},
        "engines": [
            {"name": plan["component"], **plan["facts"]}
            for plan in sorted(record["plans"].values(), key=lambda one: str(one["component"]))
        ],
    }


def markdown(record: dict[str, Any]) -> str:
    """A sentence and the table of a build."""
    engines = record["engines"]
    total = sum(one["plan_bytes"] for one in engines)
    lines = [
        f"`{record['command']}` of {record['bundle']}, {record['library']} {record['version']}: "
        f"{record['seconds']:.0f} s, of the processor {record['processor_seconds']:.0f} s; "
        f"{record['peak_memory_bytes'] / 1e9:.2f} GB of memory; {len(engines)} engines of "
        f"{total / 1e6:,.0f} MB.",
        "",
        "| | seconds | engine MB | weights MB | activations MB | layers | kernels | fused attention |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [engine_line(one) for one in engines]
    return "\n".join(lines) + "\n"


def engine_line(one: dict[str, Any]) -> str:
    attentions = one["nodes"].get("SOFTMAX", 0)
    sizes = " | ".join(megabytes(one[f"{what}_bytes"]) for what in ("plan", "weight", "activation"))
    fused = f"{one['fused_attention']} of {attentions}" if attentions else ""
    return (
        f"| `{one['name']}` | {one['seconds']:.1f} | {sizes} | {sum(one['nodes'].values())} "
        f"| {one['kernels']} | {fused} |"
    )


def megabytes(size: int | None) -> str:
    """Of bytes; a dash where TensorRT did not say."""
    return "-" if size is None else f"{size / 1e6:,.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle")
    parser.add_argument("--engine", default="tensorrt-rtx")
    parser.add_argument("--target", default="sm89")
    parser.add_argument("--tile", type=int, action="append", default=[])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--again", type=Path, metavar="OUTPUT")
    args = parser.parse_args()
    if args.again is None:
        if args.bundle is None or args.output is None:
            parser.error("--bundle and -o, or --again")
        options = ["--engine", args.engine, "--target", args.target]
        options += [word for tile in args.tile for word in ("--tile", str(tile))]
        record = build(args.bundle, options)
        args.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    output = args.again or args.output
    text = markdown(json.loads(output.with_suffix(".json").read_text(encoding="utf-8")))
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
