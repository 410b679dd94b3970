"""What `--strength` gives between the Lanczos enlargement and the model's whole result.

    python -m benchmarks.strength [--realsr DIR] [--vgg16 FILE] [-o benchmarks/results/strength_nano]

The bundle's own plan at x2 and x4, strengths 0, 0.3, 0.6 and 1, on the details and real pairs of `rivals`
(one in eight of the latter), beside MATLAB's Lanczos. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from benchmarks.quality import Method
from benchmarks.rivals import ROOT, Scores, cell, compare, facts, metrics_of, resized, sets
from tudsr_eval.table import table
from tudsr_runtime import Upscaler

STRENGTHS = (0.0, 0.3, 0.6, 1.0)
SETS = ("clean, x2", "clean, x4", "degraded, x4", "real, x4")


def methods(upscaler: Upscaler, scale: int) -> dict[str, Method]:
    """Lanczos, and the bundle at every strength."""
    found: dict[str, Method] = {"Lanczos": partial(resized, scale=scale, method="lanczos3")}
    for strength in STRENGTHS:
        of = upscaler.with_look(strength=strength)
        found[f"strength {strength:g}"] = lambda low, of=of: of.upscale(low, scale=scale)
    return found


def markdown(record: dict[str, Scores], said: str) -> str:
    """A table of means for each set of pictures."""
    lines = [f"# `--strength`, measured\n\n{said}\n"]
    for title, scores in record.items():
        columns = metrics_of(scores)
        rows = [[method, *(cell(scores, method, metric) for metric in columns)] for method in scores]
        count = len(next(iter(scores.values())))
        lines.append(
            table([f"{title}, {count} pictures", *(metric.heading for metric in columns)], rows) + "\n"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--realsr", type=Path, help="folder with LR/ and HR/ of real x4 pairs")
    parser.add_argument("--vgg16", type=Path, help="as `tudsr eval --vgg16`")
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results/strength_nano")
    args = parser.parse_args()
    from tudsr_eval.learned import Weights, load_learned

    learned = load_learned(["dists"], Weights(vgg16=str(args.vgg16))) if args.vgg16 else None
    record: dict[str, Scores] = {}
    with Upscaler(args.bundle, threads=args.threads) as upscaler:
        for title, of in sets(args.realsr, 1).items():
            if title in SETS:
                pairs = list(of())[:: 8 if title.startswith("real") else 1]
                record[title] = compare(iter(pairs), methods(upscaler, int(title[-1])), learned)
    said = facts(args, "strength")
    args.output.with_suffix(".json").write_text(
        json.dumps({"facts": said, "scores": record}, indent=1) + "\n"
    )
    args.output.with_suffix(".md").write_text(markdown(record, said), encoding="utf-8")


if __name__ == "__main__":
    main()
