"""Pairs by number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tudsr_train.data.degradation_nano import Degradation
from tudsr_train.data.pairs import Pairs, Softness, Task
from tudsr_train.data.sources import Data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(count=4, size=64, seed=1, cache=str(tmp_path_factory.mktemp("cache")))


def test_the_pool_is_drawn_once_and_then_read(data: Data) -> None:
    first = data.synthetic_pool()
    (file,) = Path(data.cache).iterdir()
    written = file.stat().st_mtime_ns
    assert (data.synthetic_pool() == first).all()
    assert file.stat().st_mtime_ns == written
    assert first.shape == (4, 64, 64, 3)


@pytest.mark.usefixtures("one_thread")
def test_a_pair_is_a_function_of_its_number(data: Data) -> None:
    pairs = Pairs(data.synthetic_pool(), Task(32, (2, 4), 32), Softness(), Degradation(), seed=5, length=100)
    x_L, x_H = pairs[17]
    again = Pairs(data.synthetic_pool(), Task(32, (2, 4), 32), Softness(), Degradation(), seed=5, length=100)
    _ = again[3]
    assert torch.equal(again[17][0], x_L)
    assert torch.equal(again[17][1], x_H)
    assert not torch.equal(pairs[18][1], x_H)
    for x in (x_L, x_H):
        assert x.shape == (3, 32, 32)
        assert x.abs().max() <= 1


def test_some_crops_are_faint_and_some_are_not(data: Data) -> None:
    pairs = Pairs(data.synthetic_pool(), Task(32, (2,), 32), Softness(), Degradation(), seed=5, length=100)
    ranges = torch.tensor([float(x_H.max() - x_H.min()) for _, x_H in (pairs[i] for i in range(60))])
    assert 5 < int((ranges < 0.4).sum()) < 35


def test_stage_2_pairs_are_n_times_larger_than_their_input(data: Data) -> None:
    pairs = Pairs(data.synthetic_pool(), Task(64, (4, 8), 32), Softness(), Degradation(), seed=5, length=100)
    x_L, y_H = pairs[0]
    assert x_L.shape == (3, 32, 32)
    assert y_H.shape == (3, 64, 64)


def test_a_smaller_reduction_is_softened_in_proportion(data: Data) -> None:
    """By x2 with `full_at` 4 as by x4 with half the sigma; from `full_at` on as without it."""
    pool = data.synthetic_pool()

    def targets(scale: int, sigma: float, full_at: int) -> list[torch.Tensor]:
        softness = Softness(1.0, (sigma, sigma), full_at)
        pairs = Pairs(pool, Task(32, (scale,), 32), softness, Degradation(), seed=5, length=9)
        return [x_H for _, x_H in (pairs[i] for i in range(9))]

    for a, b in zip(targets(2, 2.0, 4), targets(4, 1.0, 1), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(targets(4, 2.0, 4), targets(2, 2.0, 1), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(targets(2, 2.0, 4)[0], targets(2, 2.0, 1)[0])
