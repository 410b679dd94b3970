"""All pictures of all methods: each is read and measured once, several at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tudsr_eval.matching import Case
from tudsr_eval.scores import Subject, Tiling, load, measure
from tudsr_runtime.errors import TudsrError
from tudsr_runtime.metrics.consistency import scale_of
from tudsr_runtime.metrics.pixels import Array

Extra = Callable[[Array, Array | None], dict[str, float]]
"""(prediction, reference) to further scores, such as learned ones; called from one thread at a time."""


@dataclass
class Scored:
    """What is known of one case."""

    case: Case
    size: tuple[int, int] = (0, 0)
    """Width and height of the prediction, px."""
    scale: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: TudsrError | None = None

    def record(self) -> dict[str, object]:
        """The object of a line of scores.jsonl. What is not finite (equal pictures, no texture) is null."""
        case = self.case
        paths = {"prediction": case.prediction, "reference": case.reference, "input": case.source}
        odd = [f"{name}: {value}" for name, value in self.scores.items() if not math.isfinite(value)]
        return {
            "method": case.method,
            "name": case.name,
            **{key: str(path) if path else None for key, path in paths.items()},
            "size": list(self.size),
            "scale": self.scale,
            "scores": {k: v if math.isfinite(v) else None for k, v in self.scores.items()},
            "notes": [*self.notes, *odd],
            "error": str(self.error) if self.error else None,
        }


def score_all(
    cases: Sequence[Case],
    names: Sequence[str],
    tiling: Tiling,
    extra: Extra | None = None,
    jobs: int | None = None,
) -> Iterator[Scored]:
    """Scores in the order of the cases; a picture that cannot be measured carries its error."""
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        # numpy lets go of the interpreter's lock in all that takes long
        for scored, arrays in pool.map(lambda case: _score(case, names, tiling), cases):
            if extra is not None and arrays is not None:
                _add(scored, extra, *arrays)
            yield scored


def _score(
    case: Case, names: Sequence[str], tiling: Tiling
) -> tuple[Scored, tuple[Array, Array | None] | None]:
    scored = Scored(case)
    try:
        picture = load(case.prediction)
        reference = load(case.reference) if case.reference else None
        source = load(case.source) if case.source else None
        scored.size = (picture.shape[1], picture.shape[0])
        scored.scale = round(scale_of(picture, source), 3) if source is not None else None
        scored.scores, scored.notes = measure(Subject(picture, reference, source, tiling), names)
    except TudsrError as error:
        place = "" if str(case.prediction) in str(error) else f"{case.prediction}: "
        scored.error = type(error)(f"{place}{error}", hint=error.hint)
        return scored, None
    return scored, (picture, reference)


def _add(scored: Scored, extra: Extra, picture: Array, reference: Array | None) -> None:
    try:
        scored.scores |= extra(picture, reference)
    except TudsrError as error:
        scored.notes.append(str(error))
