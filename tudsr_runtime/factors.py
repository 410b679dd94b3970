"""Factors of the stages as text: "4x2" both stages, "4x-" stage 1 alone, "-x4" stage 2 alone."""

from __future__ import annotations

import math
import re

from tudsr_runtime.errors import quoted

MAX_SCALE = 32
MAX_SIDE = 2**31 - 1
"""Px of a side of any picture."""
Factors = tuple[tuple[int, int], ...]
"""(stage from 0, factor) of each stage that runs, in order."""


def parse_factors(text: object) -> Factors:
    """What the text says. Raises ValueError where that is not possible."""
    match = re.fullmatch(r"(\d{1,2}|-)x(\d{1,2}|-)", str(text), re.ASCII)
    chosen = tuple((i, int(part)) for i, part in enumerate(match.groups()) if part != "-") if match else ()
    if not chosen or not 1 <= product(chosen) <= MAX_SCALE:
        raise ValueError(
            f"factors must be two whole numbers with a product up to {MAX_SCALE}, not {quoted(text)}"
        )
    return chosen


def format_factors(factors: Factors) -> str:
    """The text that `parse_factors` takes."""
    parts = dict(factors)
    return "x".join(str(parts.get(stage, "-")) for stage in range(2))


def product(factors: Factors) -> int:
    """The enlargement that the stages make together."""
    return math.prod(factor for _, factor in factors)
