"""Scores as Markdown: a row for each method, mean and worst of each metric, and how many pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tudsr_eval.run import Scored
from tudsr_eval.scores import Metric


def methods_of(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    """What was scored, by method, in the order of the methods."""
    methods: dict[str, list[Scored]] = {}
    for one in scored:
        methods.setdefault(one.case.method, []).append(one)
    return methods


def present(scored: Sequence[Scored], metrics: Mapping[str, Metric]) -> list[Metric]:
    """The metrics that at least one picture has a figure of."""
    return [metric for metric in metrics.values() if any(metric.name in one.scores for one in scored)]


def mean(scored: Sequence[Scored], metric: Metric) -> float:
    """The mean over the pictures that have a finite figure; NaN where none has."""
    found = finite(scored, metric)
    return math.fsum(one.scores[metric.name] for one in found) / len(found) if found else math.nan


def worst(scored: Sequence[Scored], metric: Metric) -> Scored | None:
    """The picture that does worst; None where none has a finite figure."""
    found = finite(scored, metric)
    return max(found, key=lambda one: metric.badness(one.scores[metric.name])) if found else None


def finite(scored: Sequence[Scored], metric: Metric) -> list[Scored]:
    """Pictures that have a finite figure."""
    return [one for one in scored if math.isfinite(one.scores.get(metric.name, math.nan))]


def markdown(
    scored: Sequence[Scored], metrics: Mapping[str, Metric], sets: Mapping[str, Mapping[str, float]]
) -> str:
    """Two tables: means with the number of pictures, and the worst picture of each metric by name.

    Args:
        sets: figures of a whole method, such as FID, by method and metric.
    """
    methods, columns = methods_of(scored), present(scored, metrics)
    whole = list(dict.fromkeys(name for found in sets.values() for name in found))
    head = ["method", "pictures", *(m.heading for m in columns), *(metrics[name].heading for name in whole)]
    means, worsts = [], []
    for method, of in methods.items():
        measured = [one for one in of if one.error is None]
        count = str(len(of)) if len(measured) == len(of) else f"{len(measured)} of {len(of)}"
        cells = [_mean_cell(of, metric, len(measured)) for metric in columns]
        further = [_figure(sets.get(method, {}).get(name, math.nan), metrics[name]) for name in whole]
        means.append([method, count, *cells, *further])
        worsts.append([method, *(_worst_cell(of, metric) for metric in columns)])
    headings = ["method", *(metric.heading for metric in columns)]
    return f"{table(head, means)}\n\nThe worst picture of each:\n\n{table(headings, worsts)}\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _mean_cell(scored: Sequence[Scored], metric: Metric, pictures: int) -> str:
    """The mean as text; behind it the number of pictures where it is not that of all `pictures`."""
    count = len(finite(scored, metric))
    text = _figure(mean(scored, metric), metric)
    return text if count in (0, pictures) else f"{text} ({count})"


def _worst_cell(scored: Sequence[Scored], metric: Metric) -> str:
    one = worst(scored, metric)
    return f"{_figure(one.scores[metric.name], metric)} {one.case.name}" if one else "-"


def _figure(value: float, metric: Metric) -> str:
    return f"{value:.{metric.digits}f}" if math.isfinite(value) else "-"
