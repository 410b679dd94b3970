"""The metrics by name: what they need, which way is better, and their figures for one picture.

All of these are computed by `tudsr_runtime.metrics`, without torch, weights or network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np

from tudsr_runtime.errors import InputError
from tudsr_runtime.metrics.consistency import colour_error, consistency, require_enlargement, scale_of
from tudsr_runtime.metrics.fidelity import psnr, psnr_y, ssim_y
from tudsr_runtime.metrics.gmsd import gmsd_y
from tudsr_runtime.metrics.niqe import niqe
from tudsr_runtime.metrics.pixels import Array, Floats, rgb, studio_luma
from tudsr_runtime.metrics.resize import imresize
from tudsr_runtime.metrics.texture import grid_energy, seam_energy, texture_kept
from tudsr_runtime.pictures.read import read_header, read_picture
from tudsr_runtime.tiling.axis import OVERLAP, TILE, Axis
from tudsr_runtime.tiling.plan import plan_upscale

Better = Literal["higher", "lower", "near 1"]


@dataclass(frozen=True)
class Metric:
    """A column of the results."""

    name: str
    title: str
    better: Better
    digits: int = 3
    reference: bool = False
    """Whether it needs one."""
    source: bool = False
    """Whether it needs the input."""

    @property
    def heading(self) -> str:
        """The title, and an arrow that says which way is better."""
        return f"{self.title} {ARROWS[self.better]}"

    def badness(self, value: float) -> float:
        """A number that is larger the worse `value` is."""
        return {"higher": -value, "lower": value, "near 1": abs(math.log(max(value, 1e-9)))}[self.better]


ARROWS: dict[Better, str] = {"higher": "↑", "lower": "↓", "near 1": "→1"}

MOST_MEGAPIXELS = 268
"""10^6 pixels of a picture: what `tudsr upscale` makes at most unless it is told otherwise."""
ALWAYS = {
    metric.name: metric
    for metric in (
        Metric("psnr_y", "PSNR-Y, dB", "higher", reference=True),
        Metric("ssim_y", "SSIM-Y", "higher", 4, reference=True),
        Metric("gmsd", "GMSD", "lower", 4, reference=True),
        Metric("niqe", "NIQE", "lower"),
        Metric("texture", "texture kept", "near 1", reference=True),
        Metric("consistency", "consistency, dB", "higher", 2, source=True),
        Metric("colour", "colour error, levels", "lower", 2),
        Metric("seams", "seam energy", "near 1", source=True),
        Metric("grid4", "grid of 4", "lower"),
        Metric("grid8", "grid of 8", "lower"),
        Metric("gain_bicubic", "gain over bicubic, dB", "higher", reference=True, source=True),
        Metric("gain_lanczos", "gain over Lanczos, dB", "higher", reference=True, source=True),
    )
}
GROUPS = {
    "gain": ("gain_bicubic", "gain_lanczos"),
    "grid": ("grid4", "grid8"),
    "psnr": ("psnr_y",),
    "ssim": ("ssim_y",),
    "always": tuple(ALWAYS),
    "learned": ("dists", "lpips"),
}
"""Other names that may be asked for."""


@dataclass(frozen=True)
class Tiling:
    """Where `seams` looks: the tiles of `tudsr upscale`, or of another program with square tiles."""

    tile: int = TILE
    overlap: int = OVERLAP


class Subject:
    """A prediction with what it is measured against, as arrays; derived pictures are made once."""

    def __init__(
        self, picture: Array, reference: Array | None, source: Array | None, tiling: Tiling | None = None
    ) -> None:
        self.picture, self.reference, self.source = picture, reference, source
        self.tiling = tiling or Tiling()

    def plain(self, method: str) -> Floats:
        """The input enlarged by MATLAB's cubic or lanczos3 to the prediction's size, rounded to 8 bits."""
        height, width = self.picture.shape[:2]
        assert self.source is not None
        return np.round(imresize(rgb(self.source), height, width, method).clip(0, 1) * 255) / 255

    @cached_property
    def bicubic(self) -> Floats:
        """The input enlarged by the cubic: (h, w, 3) in [0, 1]."""
        return self.plain("cubic")

    @cached_property
    def luma(self) -> Floats:
        """Y of the reference, as `studio_luma` gives it."""
        assert self.reference is not None
        return studio_luma(self.reference)

    def score(self, name: str) -> float:
        """One metric of ALWAYS. InputError where it cannot be had of such a picture."""
        return _FUNCTIONS[name](self)


def measure(subject: Subject, names: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """The metrics that the subject has what they need for, and why others are missing.

    Raises:
        InputError: the prediction and its reference differ in size, or it is no enlargement of its input.
    """
    _check_sizes(subject)
    scores, notes = {}, []
    for name in names:
        if not can_be_had(ALWAYS[name], subject.reference is not None, subject.source is not None):
            continue
        try:
            scores[name] = subject.score(name)
        except InputError as error:
            notes.append(f"{name}: {error}")
    return scores, notes


def can_be_had(metric: Metric, reference: bool, source: bool) -> bool:
    """Whether what it needs is there; `colour` takes the input or a reference."""
    if metric.name == "colour":
        return reference or source
    return (reference or not metric.reference) and (source or not metric.source)


def load(path: Path) -> Array:
    """A picture file as an array (h, w) or (h, w, 2 to 4) of its own depth, upright.

    Raises:
        InputError, MemoryExhausted: as `read_picture`.
    """
    picture = read_picture(read_header(path, MOST_MEGAPIXELS), "strip")
    if picture.alpha is None:
        return picture.levels
    colour = picture.levels[..., None] if picture.grey else picture.levels
    return np.concatenate([colour, picture.alpha[..., None]], axis=-1)


def _check_sizes(subject: Subject) -> None:
    if subject.reference is not None and subject.reference.shape[:2] != subject.picture.shape[:2]:
        sizes = [f"{x.shape[1]} x {x.shape[0]}" for x in (subject.picture, subject.reference)]
        raise InputError(f"the prediction has {sizes[0]} pixels, its reference {sizes[1]}")
    if subject.source is not None:
        require_enlargement(subject.picture, subject.source)


def _colour(subject: Subject) -> float:
    against = subject.source if subject.source is not None else subject.reference
    assert against is not None
    return colour_error(subject.picture, against)


def _gain(subject: Subject, method: str) -> float:
    plain = subject.bicubic if method == "cubic" else subject.plain(method)
    ours = psnr(studio_luma(subject.picture), subject.luma)
    return ours - psnr(studio_luma(plain), subject.luma)


def _seams(subject: Subject) -> float:
    assert subject.source is not None
    (height, width), (h, w) = subject.picture.shape[:2], subject.source.shape[:2]
    scale = round(scale_of(subject.picture, subject.source), 2)
    tiling = subject.tiling
    plan = plan_upscale(w, h, max(scale, 1.0), tile=tiling.tile, overlap=tiling.overlap)
    last = plan.stages[-1]
    columns, rows = _middles(last.columns, width), _middles(last.rows, height)
    if not columns and not rows:
        raise InputError(f"one tile of {tiling.tile} px holds all of it")
    return seam_energy(subject.picture, subject.bicubic, columns, rows)


def _middles(axis: Axis, side: int) -> list[int]:
    """Where neighbouring tiles' overlaps have their middle, in px of a picture whose side is `side`."""
    pairs = itertools.pairwise(axis.starts)
    return [round((left + axis.tile + right) / 2 * side / axis.length) for left, right in pairs]


def _with_reference(function: Callable[[Array, Array], float]) -> Callable[[Subject], float]:
    return lambda subject: function(subject.picture, subject.reference)  # type: ignore[arg-type]


_FUNCTIONS: dict[str, Callable[[Subject], float]] = {
    "psnr_y": _with_reference(psnr_y),
    "ssim_y": _with_reference(ssim_y),
    "gmsd": _with_reference(gmsd_y),
    "niqe": lambda subject: niqe(subject.picture),
    "texture": _with_reference(texture_kept),
    "consistency": lambda subject: consistency(subject.picture, subject.source),  # type: ignore[arg-type]
    "colour": _colour,
    "seams": _seams,
    "grid4": lambda subject: grid_energy(subject.picture, 4),
    "grid8": lambda subject: grid_energy(subject.picture, 8),
    "gain_bicubic": partial(_gain, method="cubic"),
    "gain_lanczos": partial(_gain, method="lanczos3"),
}
