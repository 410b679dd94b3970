"""`nano`'s recipe is frozen: the released model was trained on these very pairs.

Not bit for bit: FFTs and JPEG encoders round the last bit as the processor and the build like it, and a level
that rounds the other way moves a block of its JPEG a little. So every picture is held by a few figures to
which that adds less than TOLERANCE, and which any other draw moves by more: a test below says so of every
number of the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom
from torch import Tensor

from tudsr_train.data import degradation_nano as degradation
from tudsr_train.data import pairs as data
from tudsr_train.data.degradation_nano import Degradation, degrade
from tudsr_train.data.pairs import Pairs, Softness, Task

Figures = NDArray[np.float64]
TASKS = {1: Task(64, (2, 4), 64), 2: Task(64, (4, 8), 32)}
SOFTNESS, DEGRADATION = Softness(), Degradation()
COUNT = 24
TOLERANCE = 3e-4
RECORDED = Path(__file__).with_name("frozen_pairs.txt")
"""A line for every picture of 24 pairs a stage: what `_figures` says of it."""


def _pool() -> NDArray[np.uint8]:
    """Coarse shapes, so that crops, turns and channel orders differ, under noise, so that a blur shows."""
    rng = np.random.default_rng(11)
    coarse = zoom(rng.random((3, 6, 6, 3)), (1, 16, 16, 1), order=1)
    levels = 255 * (0.6 * coarse + 0.4 * rng.random((3, 96, 96, 3)))
    return (levels + 0.5).astype(np.uint8)


def _figures(x: Tensor) -> Figures:
    """Mean, slopes across, down and over the channels, and detail across, down and in a channel."""
    y = x.double().numpy()
    channel, down, across = (np.linspace(-1, 1, n) for n in y.shape)
    slopes = [(y.mean((0, 1)) @ across), (y.mean((0, 2)) @ down), (y.mean((1, 2)) @ channel)]
    slopes = [slope / n for slope, n in zip(slopes, (len(across), len(down), len(channel)), strict=True)]
    detail = [np.diff(y, axis=2).std(), np.diff(y, axis=1).std(), np.diff(y[0], 2, axis=1).std()]
    return np.array([y.mean(), *slopes, *detail])


def _distances(
    stage: int, softness: Softness = SOFTNESS, degradation: Degradation = DEGRADATION
) -> Iterator[float]:
    """Of each pair from the recorded one, one by one: a change is noticed long before the last."""
    pairs = Pairs(_pool(), TASKS[stage], softness, degradation, seed=4 + stage, length=100)
    recorded = np.loadtxt(RECORDED).reshape(2, COUNT, 2, -1)[stage - 1]
    for number in range(COUNT):
        described = np.array([_figures(x) for x in pairs[number]])
        yield float(np.abs(described - recorded[number]).max())


@pytest.mark.parametrize("stage", [1, 2])
def test_the_pairs_are_those_that_nano_was_trained_on(stage: int) -> None:
    assert max(_distances(stage)) < TOLERANCE


def _moved(value: Any) -> Iterator[Any]:
    """A share, or each end of a range, moved a little."""
    if isinstance(value, tuple):
        low, high = value
        step = 3 if isinstance(high, int) else 0.1 * high
        yield from ((low + step, high), (low, high - step))
    elif isinstance(value, float):
        yield value * 0.7


CHANGES = [
    pytest.param(part, field.name, changed, id=f"{field.name}={changed}")
    for part in (SOFTNESS, DEGRADATION)
    for field in fields(part)
    for changed in _moved(getattr(part, field.name))
]


@pytest.mark.parametrize(("part", "name", "changed"), CHANGES)
def test_any_other_number_in_the_recipe_would_be_noticed(part: Any, name: str, changed: Any) -> None:
    other = {type(part).__name__.lower(): replace(part, **{name: changed})}
    assert any(distance > 3 * TOLERANCE for stage in (1, 2) for distance in _distances(stage, **other))


@pytest.mark.parametrize("extra", ["_random_crop", "_shift", "_reduce", "_add_noise"])
def test_one_draw_more_would_be_noticed(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rngs: list[np.random.Generator] = []
    make = np.random.default_rng
    module = data if extra == "_random_crop" else degradation
    original = getattr(module, extra)

    def noted(seed: Any) -> np.random.Generator:
        rngs.append(make(seed))
        return rngs[-1]

    def after_one_more(*arguments: Any) -> Any:
        rngs[-1].random()
        return original(*arguments)

    monkeypatch.setattr(np.random, "default_rng", noted)
    monkeypatch.setattr(module, extra, after_one_more)
    assert any(distance > 3 * TOLERANCE for distance in _distances(1))


class Recorder:
    """A generator of random numbers that notes the name of every draw."""

    def __init__(self, seed: int) -> None:
        self.rng, self.names = np.random.default_rng(seed), list[str]()

    def __getattr__(self, name: str) -> Any:
        self.names.append(name)
        return getattr(self.rng, name)


def test_the_draws_are_made_in_the_order_that_nano_was_trained_with() -> None:
    always: Any = Degradation(sharpen_prob=1.0, noise_prob=1.0, jpeg_prob=1.0)
    blurred = ["uniform", "random", "uniform"]  # widths, one or two of them, angle
    shifted = ["random", "uniform"]
    sharpened = ["random", "uniform", "uniform"]
    noisy = ["random", "random", "standard_normal", "uniform", "random"]  # whether, grey, ..., strength, shot
    compressed = ["random", "integers"]
    kinds = set()
    for seed in range(6):
        rng: Any = Recorder(seed)
        degrade(torch.rand(3, 48, 48), 2, always, rng)
        area = rng.names == [*blurred, *shifted, "choice", *sharpened, *noisy, *compressed]
        antialias = ["choice", "random"]
        assert area or rng.names == [*blurred, *shifted, *antialias, *sharpened, *noisy, *compressed]
        kinds.add(area)
    assert kinds == {False, True}
