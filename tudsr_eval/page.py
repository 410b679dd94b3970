"""One HTML file to look at: input, every method and reference side by side, with their figures.

Everything is inside the file, and its content security policy lets nothing be fetched: it can be kept, sent
and opened anywhere. Pictures are lossless.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from tudsr_eval.run import Scored
from tudsr_eval.scores import Metric, load
from tudsr_eval.table import mean, methods_of, present
from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.errors import InputError
from tudsr_runtime.metrics.pixels import Array

Named = TypeVar("Named")
TEMPLATE = Path(__file__).with_name("page.html")
LARGEST = 1_500_000
"""Pixels of a picture above which its middle alone is shown."""
MIDDLE = 1024
"""Side of the part that is shown, px."""


def write_page(
    path: Path,
    scored: Sequence[Scored],
    metrics: Mapping[str, Metric],
    pictures: int,
    title: str = "tudsr eval",
) -> None:
    """Write the page, with pictures of at most `pictures` subjects, evenly spread, and the others' figures.

    Raises:
        OutputError: it cannot be written.
    """
    data = json.dumps(page_data(scored, metrics, pictures)).replace("<", "\\u003c")
    with atomic_write(path) as file:
        page = TEMPLATE.read_text("utf-8").replace("<!--TITLE-->", html.escape(title))
        file.write(page.replace("<!--DATA-->", data).encode("utf-8"))


def page_data(scored: Sequence[Scored], metrics: Mapping[str, Metric], pictures: int) -> dict[str, Any]:
    """What the page's script reads."""
    columns = present(scored, metrics)
    subjects: dict[str, list[Scored]] = {}
    for one in scored:
        subjects.setdefault(one.case.name, []).append(one)
    chosen = set(spread(list(subjects), pictures))
    return {
        "columns": [
            {"name": m.name, "title": m.title, "better": m.better, "digits": m.digits} for m in columns
        ],
        "methods": [
            {
                "name": method,
                "pictures": sum(one.error is None for one in of),
                "means": {m.name: _plain(mean(of, m)) for m in columns},
            }
            for method, of in methods_of(scored).items()
        ],
        "cases": [_case(name, of, name in chosen) for name, of in subjects.items()],
    }


def _case(name: str, scored: Sequence[Scored], with_pictures: bool) -> dict[str, Any]:
    """A subject: its input, predictions and reference."""
    first, notes = scored[0].case, [str(one.error) for one in scored if one.error]
    panels = [_panel("input", first.source, {})] if first.source else []
    panels += [
        _panel(one.case.method, one.case.prediction, {k: _plain(v) for k, v in one.scores.items()})
        for one in scored
    ]
    panels += [_panel("reference", first.reference, {})] if first.reference else []
    if not with_pictures:
        notes.append("figures alone: the page holds fewer pictures than were measured")
    else:
        notes += _embed(panels, [one for one in scored if not one.error])
    for panel in panels:
        del panel["path"]
    return {"name": name, "note": "; ".join(notes), "panels": panels}


def _panel(label: str, path: Path | None, scores: dict[str, float | None]) -> dict[str, Any]:
    return {"label": label, "path": path, **({"scores": scores} if scores else {})}


def _embed(panels: list[dict[str, Any]], measured: Sequence[Scored]) -> list[str]:
    """Put the pictures in; notes on what is not shown of them."""
    if not measured:
        return []
    width, height = measured[0].size
    whole = width * height <= LARGEST
    for panel in panels:
        try:
            panel["src"] = data_uri(load(panel["path"]), None if whole else (width, height))
        except InputError:
            panel["label"] += " (cannot be read)"
    return [] if whole else [f"the middle of {width} x {height} pixels"]


def data_uri(picture: Array, within: tuple[int, int] | None = None) -> str:
    """A lossless WebP of a picture, of its middle where `within` (width and height in px) is given.

    The middle is `MIDDLE` px of a picture of that size; of a smaller one, such as the input, the same part.
    """
    if within is not None:
        height, width = picture.shape[:2]
        h, w = (
            max(1, min(side, round(MIDDLE * side / of)))
            for side, of in ((height, within[1]), (width, within[0]))
        )
        top, left = (height - h) // 2, (width - w) // 2
        picture = picture[top : top + h, left : left + w]
    file = io.BytesIO()
    as_image(picture).save(file, "WEBP", lossless=True, quality=20, method=1)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def as_image(picture: Array) -> Image.Image:
    """A picture of 8 bits for Pillow: L, RGB or RGBA; 16 bits are rounded."""
    if picture.dtype == np.uint16:
        picture = np.round(picture / 257).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(picture))
    return image.convert("RGBA" if image.mode == "LA" else image.mode)


def spread(names: Sequence[Named], count: int) -> Sequence[Named]:
    """At most `count` of the items, evenly spread."""
    if count >= len(names):
        return names
    return [names[number * len(names) // count] for number in range(count)]


def _plain(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
