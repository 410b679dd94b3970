"""Pictures whose opposite edges meet: 360-degree panoramas (x), tiles of a texture (x and y).

Such a picture is enlarged with a margin of its own other side around it, so that the model sees no edge. At
the edge two tiles then show the same pixels, one of them in the margin; they are blended there by the same
ramp as neighbouring tiles anywhere else.
"""

from __future__ import annotations

import math

import numpy as np

from tudsr_runtime.planes import WRAPS, FloatArray
from tudsr_runtime.tiling.axis import DEAD_MARGIN, MAX_RAMP, OVERLAP, raised_cosine
from tudsr_runtime.tiling.plan import Plan
from tudsr_runtime.tiling.resample import BLOCK_ROWS, LANCZOS_SUPPORT, RowBuffer, Rows, resize_stream

COLOUR_MARGIN = 32
"""Px of the input beyond an edge that colour correction may look at."""


def margins(wrap: str, factor: int) -> tuple[int, int]:
    """Px of the input (left and right, above and below) that a picture is extended by.

    In the canvas of the first stage, which enlarges by `factor`, that is as much as tiles overlap.
    """
    px = max(COLOUR_MARGIN, math.ceil(OVERLAP / factor))
    across, down = WRAPS[wrap]
    return px * across, px * down


def unwrapped(rows: Rows, plan: Plan) -> Rows:
    """The rows of the extended picture, enlarged by the plan's product, as those of the result.

    Takes and gives (3, rows, width). Holds `MAX_RAMP` rows besides where edges above and below meet. All rows
    are taken.
    """
    product, (across, down) = plan.product, plan.margin
    width, height = plan.width * product, plan.height * product
    exact = (width, height) == (plan.output_width, plan.output_height)
    beyond = 0 if exact or not across else _support(width / plan.output_width)
    rows = (_columns(band, across * product, width, beyond) for band in rows) if across else rows
    below = 0 if exact or not down else _support(height / plan.output_height)
    rows = _lines(rows, down * product, height, below) if down else rows
    if exact:
        return rows
    resized = resize_stream(rows, height, plan.output_height, plan.output_width, (beyond, below))
    return _to_the_end(resized, rows)


def _to_the_end(made: Rows, source: Rows) -> Rows:
    """What is made of a source, which is then taken to its end: it counts its tiles."""
    yield from made
    for _ in source:
        pass


def _support(reduction: float) -> int:
    """Px beyond an edge that a resize by 1 / reduction looks at."""
    return math.ceil(LANCZOS_SUPPORT * max(reduction, 1.0)) + 1


def _ramp(margin: int, length: int) -> FloatArray:
    """Weights of the margin in front of an edge over the px that lead to the other edge, up to almost 1."""
    ramp = min(MAX_RAMP, margin - 2 * DEAD_MARGIN)
    return raised_cosine(ramp)[-length:]


def _columns(band: FloatArray, margin: int, width: int, beyond: int) -> FloatArray:
    """Rows of the extended picture without its margins, `beyond` px of the other side on either."""
    picture = band[:, :, margin : margin + width].copy()
    weights = _ramp(margin, width)
    end = picture[:, :, width - len(weights) :]
    end += weights * (band[:, :, margin - len(weights) : margin] - end)
    return picture[:, :, np.arange(-beyond, width + beyond) % width] if beyond else picture


def _lines(source: Rows, margin: int, height: int, beyond: int) -> Rows:
    """The same along the other axis."""
    buffer, weights = RowBuffer(source), _ramp(margin, height)[:, None]
    kept = max(len(weights), beyond)
    above = buffer.rows(margin - kept, margin).copy()
    first = buffer.rows(margin, margin + min(max(beyond, 1), height)).copy()
    if beyond:
        yield above[:, -beyond:]
    last = margin + height - len(weights)
    for begin in range(margin, last, BLOCK_ROWS):
        end = min(begin + BLOCK_ROWS, last)
        yield buffer.rows(begin, end)
        buffer.drop(end)
    rows = buffer.rows(last, margin + height)
    yield rows + weights * (above[:, kept - len(weights) :] - rows)
    if beyond:
        yield first[:, np.arange(beyond) % height]
    for begin in range(margin + height, 2 * margin + height, BLOCK_ROWS):
        # What is not wanted any more is taken all the same, as in `_to_the_end`.
        buffer.rows(begin, min(begin + BLOCK_ROWS, 2 * margin + height))
        buffer.drop(begin)
