"""Is an adversarial run healthy? Draws its log and says in which range each curve ends.

    python -m benchmarks.gan_curves RUN/log.jsonl [RUN/log.jsonl ...] -o benchmarks/results/gan

Reads the logs that `tudsr train stage1` and `stage2` leave in `OUT.run/`; writes PREFIX.png and PREFIX.json.
Healthy (docs/discriminators-and-losses.md): no term leaves for good the side of the range that means that one
of the two networks has won; D sees a difference, but G keeps up. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

TERMS = ("L_gen", "L_real", "L_fake")
LOGITS = ("logit_gen", "logit_real", "logit_fake")
EQUILIBRIUM = {"L_gen": 0.835, "L_real": 0.835, "L_fake": 0.511}
RANGES = {"L_gen": (0.5, 1.5), "L_real": (0.5, 1.0), "L_fake": (0.1, 0.75)}
"""Of the paper's soft labels. Below L_fake 0.1, or above L_gen 1.5, D has won."""


@dataclass(frozen=True)
class Run:
    """One log: a list of values for every term."""

    name: str
    steps: list[int]
    curves: dict[str, list[float]]

    @classmethod
    def read(cls, path: Path) -> Run:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [line for line in lines if "L_gen" in line]
        if not lines:
            sys.exit(f"{path}: no adversarial terms in this log")
        known = [name for name in (*TERMS, *LOGITS, "ea_dists", "mae") if name in lines[0]]
        name = path.parent.name.removesuffix(".run")
        return cls(name, [line["step"] for line in lines], {k: [line[k] for line in lines] for k in known})

    def ends(self) -> dict[str, float]:
        """Mean of each curve over its last fifth."""
        last = max(1, len(self.steps) // 5)
        return {name: round(fmean(values[-last:]), 4) for name, values in self.curves.items()}

    def summary(self) -> dict[str, object]:
        ends = self.ends()
        within = {name: low <= ends[name] <= high for name, (low, high) in RANGES.items()}
        largest = {name: round(max(self.curves[name]), 4) for name in TERMS}
        starts = {name: round(values[0], 4) for name, values in self.curves.items()}
        return {
            "steps": self.steps[-1],
            "first": starts,
            "last_fifth": ends,
            "largest": largest,
            "within": within,
        }


def draw(runs: list[Run], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(runs), 3, figsize=(13, 3.2 * len(runs)), squeeze=False)
    for row, run in zip(axes, runs, strict=True):
        rest = [name for name in run.curves if name not in TERMS + LOGITS]
        for axis, names in zip(row, (TERMS, LOGITS, rest), strict=True):
            for name in names:
                (line,) = axis.plot(run.steps, run.curves[name], label=name, linewidth=1.2)
                if name in EQUILIBRIUM and name != "L_real":
                    axis.axhline(EQUILIBRIUM[name], color=line.get_color(), linewidth=0.7, linestyle=":")
            axis.set_xlabel("step")
            axis.legend(fontsize=8)
        row[0].set_title(f"{run.name}: losses (dotted: equilibrium of the paper's labels)", fontsize=9)
        row[1].set_title("mean logits", fontsize=9)
        row[2].set_title("reconstruction", fontsize=9)
        row[2].set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG")
    parser.add_argument("-o", type=Path, required=True, metavar="PREFIX")
    arguments = parser.parse_args()
    runs = [Run.read(path) for path in arguments.logs]
    report = {run.name: run.summary() for run in runs}
    arguments.o.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    draw(runs, arguments.o.with_suffix(".png"))
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
