"""`tudsr train plot RUN`: a run's log as curves, in one HTML or SVG file that needs nothing else.

Figures of one kind share a panel: losses, logits, gradient norms, and each validation figure with all stages.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path

from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.errors import TrainingError, UsageError

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 70, 10, 40, 30
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
LOG = "log.jsonl"

Curve = list[tuple[float, float]]
"""(step, value), finite."""


def plot(run: Path, output: Path | None) -> Path:
    """Draw the log of a run into `output` (.html or .svg; RUN/plot.html by default); its path.

    Raises:
        UsageError: another suffix.
        TrainingError: no log in `run`, or no figure in it.
        OutputError: the file cannot be written.
    """
    output = output or run / "plot.html"
    if output.suffix not in (".html", ".svg"):
        raise UsageError(f"{output}: a .html or a .svg file is drawn")
    curves = read_curves(run)
    drawing = svg(run.name, panels(curves))
    page = f'<!doctype html>\n<meta charset="utf-8"><title>{html.escape(run.name)}</title>\n{drawing}\n'
    with atomic_write(output) as file:
        file.write((page if output.suffix == ".html" else drawing).encode())
    return output


def read_curves(run: Path) -> dict[str, Curve]:
    """Every figure of the log, by name. A last line that was cut short is left out."""
    path = run / LOG
    if not path.is_file():
        raise TrainingError(f"{run}: no {LOG} here", hint="the folder of a run: OUT.run")
    curves: dict[str, Curve] = {}
    for line in path.read_text().splitlines():
        if not line.endswith("}"):
            continue
        figures = json.loads(line)
        step = figures.pop("step")
        for name, value in figures.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                curves.setdefault(name, []).append((step, value))
    if not curves:
        raise TrainingError(f"{path}: no figures yet")
    return curves


def panels(curves: dict[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Curves by the title of their panel; what people look at comes first."""
    found: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        found.setdefault(_title(name), {})[name] = curve
    order = ("losses", "logits", "validation", "gradient norm", "learning rate")
    rank = {title: (*[title.startswith(o) for o in order], True).index(True) for title in found}
    return dict(sorted(found.items(), key=lambda item: rank[item[0]]))


def _title(name: str) -> str:
    kind, _, rest = name.partition("/")
    if not rest:
        speed = name.endswith("per_s") or name in ("peak_memory_gib", "skipped")
        return name if speed else "logits" if name.startswith("logit") else "losses"
    titles = {"lr": "learning rate", "gradient_norm": "gradient norm"}
    return f"validation: {rest.split(' ')[0]}" if kind == "validation" else titles.get(kind, kind)


def svg(title: str, found: dict[str, dict[str, Curve]]) -> str:
    """All panels, one below the other."""
    height = TOP + len(found) * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{html.escape(title)}</text>',
    ]
    for number, (name, curves) in enumerate(found.items()):
        parts += [f'<g transform="translate(0 {TOP + number * HEIGHT})">', *_panel(name, curves), "</g>"]
    return "\n".join([*parts, "</svg>"])


def _panel(title: str, curves: dict[str, Curve]) -> list[str]:
    points = [point for curve in curves.values() for point in curve]
    x, y = (_Scale([p[axis] for p in points]) for axis in (0, 1))
    parts = [f'<text x="{LEFT}" y="14" font-weight="bold">{html.escape(title)}</text>']
    for value in y.ticks():
        at = _down(y, value)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in x.ticks():
        at = _across(x, value)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{value:.6g}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(f"{_across(x, step):.1f},{_down(y, value):.1f}" for step, value in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        if len(curve) == 1:
            across, down = _across(x, curve[0][0]), _down(y, curve[0][1])
            parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2" fill="{colour}"/>')
        shown = html.escape(name.partition("/")[2] or name)
        place = f'x="{LEFT + 120 * (number % 4 + 1)}" y="{14 + 12 * (number // 4)}"'
        parts.append(f'<text {place} fill="{colour}">{shown}</text>')
    return parts


class _Scale:
    """The range of an axis, never empty."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low, self.high = min(values), max(values)
        if self.low == self.high:
            pad = abs(self.low) / 10 or 1.0
            self.low, self.high = self.low - pad, self.high + pad

    def place(self, value: float) -> float:
        """0 to 1."""
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers inside the range, three to eight."""
        rough = (self.high - self.low) / 4
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough)
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step) + 1)]


def _across(scale: _Scale, step: float) -> float:
    return LEFT + scale.place(step) * (WIDTH - LEFT - RIGHT)


def _down(scale: _Scale, value: float) -> float:
    return HEIGHT - BOTTOM - scale.place(value) * (HEIGHT - BOTTOM - TOP)
