"""DiffAugment: what each policy may do to a picture, and what it may not."""

from __future__ import annotations

import pytest
import torch

from tudsr_runtime.errors import TrainingError
from tudsr_train.discriminators.diff_augment import diff_augment, policies

ALL = ("color", "translation", "cutout")


def _drawn_from(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_policies_are_read_and_checked() -> None:
    assert policies("color, translation,cutout") == ALL
    assert policies("") == ()
    with pytest.raises(TrainingError, match="'colour' is not known; color, translation, cutout are"):
        policies("colour")


def test_nothing_asked_is_nothing_done() -> None:
    x = torch.rand(1, 3, 8, 8)
    assert diff_augment(x, ()) is x


def test_draws_come_from_the_generator_and_differ_between_pictures() -> None:
    x = torch.rand(1, 3, 32, 32).expand(4, -1, -1, -1)
    first, again = (diff_augment(x, ALL, _drawn_from(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, diff_augment(x, ALL, _drawn_from(8)))
    assert len({tuple(one.flatten().tolist()) for one in first}) == 4


def test_color_moves_the_mean_by_half_at_most_and_keeps_the_order_of_pixels() -> None:
    x = torch.rand(64, 1, 1, 1) + torch.linspace(-1, 1, 16).view(1, 1, 4, 4).expand(64, 3, -1, -1)
    y = diff_augment(x, ("color",), _drawn_from(0))
    moved = (y.mean((1, 2, 3)) - x.mean((1, 2, 3))).abs()
    contrast = y.std((1, 2, 3)) / x.std((1, 2, 3))
    assert 0.4 < moved.max() <= 0.5 + 1e-5
    assert 0.5 - 1e-5 <= contrast.min() < 0.6
    assert 1.4 < contrast.max() <= 1.5 + 1e-5
    assert (y.flatten(2).diff(dim=2) > 0).all()


def test_color_changes_saturation_between_none_and_twice() -> None:
    x = torch.zeros(256, 3, 2, 2)
    x[:, 0] = 1
    y = diff_augment(x, ("color",), _drawn_from(0))
    # contrast scales the spread between channels as well: at most 2 x 1.5 times, at least nothing
    spread = (y.amax(1) - y.amin(1)).mean((1, 2))
    assert spread.min() < 0.05
    assert 2 < spread.max() <= 3 + 1e-5


def test_translation_is_a_shift_with_zeros_coming_in() -> None:
    x = torch.arange(1.0, 16 * 24 + 1).view(1, 1, 16, 24).expand(64, 3, -1, -1)
    y = diff_augment(x, ("translation",), _drawn_from(0))
    seen = set()
    for one in y[:, 0]:
        i, j = (one != 0).nonzero()[0].tolist()
        source = int(one[i, j]) - 1
        down, right = i - source // 24, j - source % 24
        seen.add((down, right))
        expected = torch.zeros(16, 24)
        rows, columns = torch.arange(16), torch.arange(24)
        kept = (rows >= down) & (rows < 16 + down), (columns >= right) & (columns < 24 + right)
        shifted = x[0, 0].roll((down, right), (0, 1))
        expected[kept[0][:, None] & kept[1]] = shifted[kept[0][:, None] & kept[1]]
        assert torch.equal(one, expected)
    assert {down for down, _ in seen} == set(range(-2, 3))
    assert {right for _, right in seen} == set(range(-3, 4))


def test_cutout_hides_one_window_of_half_of_each_side() -> None:
    y = diff_augment(torch.ones(64, 3, 16, 16), ("cutout",), _drawn_from(0))
    sizes = set()
    for one in y:
        hidden = (one == 0).all(0)
        assert torch.equal(hidden, (one == 0).any(0))
        rows, columns = hidden.any(1), hidden.any(0)
        assert torch.equal(hidden, rows[:, None] & columns)
        assert rows.nonzero().flatten().diff().eq(1).all()
        sizes.add(int(rows.sum()))
    assert max(sizes) == 8
    assert min(sizes) >= 4


def test_gradients_reach_the_picture_where_it_is_seen() -> None:
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    y = diff_augment(x, ALL, _drawn_from(0))
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
