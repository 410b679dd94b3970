"""Sizes that are asked for in pixels instead of by a scale."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass

from tudsr_runtime.errors import UsageError
from tudsr_runtime.factors import MAX_SCALE, MAX_SIDE


@dataclass(frozen=True)
class TargetSize:
    """What the result is to measure: `width`, `height` or both in px, `longest` side, or 10^6 px in all.

    What is not given follows from the shape of the picture.
    """

    width: int | None = None
    height: int | None = None
    longest: int | None = None
    megapixels: float | None = None

    def of(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the result for a picture of width x height px, each at least 1."""
        if self.width is not None and self.height is not None:
            return self.width, self.height
        if self.megapixels is not None:
            scale = math.sqrt(self.megapixels * 1e6 / (width * height))
            return _rounded(width * scale), _rounded(height * scale)
        across, side = self._known_side(width, height)
        if across:
            return side, _rounded(height * side / width)
        return _rounded(width * side / height), side

    def stretch(self, width: int, height: int) -> str | None:
        """A note if the result has another shape than the picture, by more than rounding."""
        across, down = self.of(width, height)
        if abs(across * height / width - down) <= 1 or abs(down * width / height - across) <= 1:
            return None
        percent = 100 * (across * height / (down * width) - 1)
        how = (
            f"{percent:.1f} % wider"
            if percent > 0
            else f"{100 * (down * width / (across * height) - 1):.1f} % taller"
        )
        return f"stretched: {across} x {down} is {how} than the picture's own shape"

    def _known_side(self, width: int, height: int) -> tuple[bool, int]:
        """Whether the width is given (else the height is), and how long it is."""
        if self.longest is not None:
            return width >= height, self.longest
        return (True, self.width) if self.width is not None else (False, self.height or 1)


def target_size(
    scale: float | None,
    width: int | None,
    height: int | None,
    longest: int | None,
    megapixels: float | None,
) -> TargetSize | None:
    """The size of the options of those names; None where none but `scale` is given.

    Raises:
        UsageError: two of them say different things, or one is not positive, or longer than any picture.
    """
    pair = [name for name, value in (("--width", width), ("--height", height)) if value is not None]
    others = {"--scale": scale, "--longest": longest, "--megapixels": megapixels}
    given = [
        *(["/".join(pair)] if pair else []),
        *(name for name, value in others.items() if value is not None),
    ]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} both say how large the result is; give one")
    if megapixels is not None and not 0 < megapixels <= MAX_SIDE**2 / 1e6:
        raise UsageError(
            f"megapixels must be positive, and at most {MAX_SIDE**2 / 1e6:.3g}, not {megapixels}"
        )
    for name, side in (("width", width), ("height", height), ("longest", longest)):
        if side is not None and side > MAX_SIDE:
            raise UsageError(f"{name} must be at most {MAX_SIDE} px")
    size = TargetSize(width, height, longest, megapixels)
    return None if size == TargetSize() else size


def scaled_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """(width, height) in px of a picture that is enlarged by `scale`: floor(side scale + 0.5)."""
    return math.floor(width * scale + 0.5), math.floor(height * scale + 0.5)


def largest_scale(fits: Callable[[float], bool]) -> float | None:
    """The largest scale from 1 to 32, in hundredths, for which `fits` holds; None if it holds for none.

    `fits` holds for every scale below one that it holds for.
    """
    hundredths = range(100, 100 * MAX_SCALE + 1)
    number = bisect.bisect_left(hundredths, True, key=lambda count: not fits(count / 100))
    return hundredths[number - 1] / 100 if number else None


def _rounded(side: float) -> int:
    return max(1, math.floor(side + 0.5))
