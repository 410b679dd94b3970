"""Which overlap of tiles an export finds good enough, with models whose error at a tile's edge is known."""

from __future__ import annotations

import math

import pytest
import torch

from tudsr_export.gates import Report
from tudsr_export.seams import GOOD_DB, LOSS_DB, Seams, overlap_for, reach_of, seam_figures
from tudsr_runtime.tiling.axis import plan_axis

TILE = 256


def wrong_at_the_edges(reach: float, size: float = 1.0):
    """A model that is right but for an error at the left and right edges that fades over `reach` px."""
    x = torch.arange(TILE)
    nearest = torch.minimum(x, TILE - 1 - x)
    error = size * torch.exp(-nearest / reach)
    return lambda tile: tile * (1 - error.clamp(max=1))


def measured(*models):
    seams, report = Seams(TILE), Report()
    for number, model in enumerate(models, 1):
        seams.through(model, f"stage{number}", report)
    return seams.overlap, {m.subject: m.value for m in report.measurements}


def test_a_model_that_sees_one_pixel_may_overlap_less():
    overlap, figures = measured(lambda tile: tile)
    assert overlap == 80
    assert figures["stage1, overlap 80"] > 120, "the weights add up to one"


def test_errors_that_reach_far_keep_the_usual_overlap():
    overlap, figures = measured(wrong_at_the_edges(30))
    assert overlap == 128
    assert figures["stage1, overlap 80"] < figures["stage1, overlap 128"] - LOSS_DB


def test_the_worst_stage_decides():
    assert measured(wrong_at_the_edges(2), wrong_at_the_edges(30))[0] == 128
    assert measured(wrong_at_the_edges(30), wrong_at_the_edges(2))[0] == 128
    assert measured(wrong_at_the_edges(2), wrong_at_the_edges(2))[0] == 80


def test_what_nobody_sees_does_not_count():
    overlap, figures = measured(wrong_at_the_edges(30, 0.002))
    assert overlap == 80
    assert GOOD_DB < figures["stage1, overlap 80"] < figures["stage1, overlap 128"] - LOSS_DB


def test_small_tiles_are_not_measured():
    seams, report = Seams(64), Report()
    seams.through(lambda tile: tile, "stage1", report)
    assert seams.overlap is None
    assert not report.measurements


@pytest.mark.parametrize("overlap", [24, 32])
def test_the_strip_is_that_of_the_runtime(overlap):
    """A model that draws its tile's place: what is compared are the same pixels of the canvas."""
    ((actual, expected),) = seam_figures(lambda tile: tile, 64, [overlap])
    assert actual.shape == expected.shape
    assert actual.shape[-1] == overlap - 16
    assert -10 * math.log10(float((actual - expected).square().mean()) + 1e-30) > 120


def seeing(cells: int, weight: float):
    """A network, x2, each pixel of which takes `weight` of what lies `cells` px to the left and right."""
    kernel = torch.zeros(3, 1, 1, 2 * cells + 1)
    kernel[..., 0] = kernel[..., -1] = weight
    kernel[..., cells] = 1 - 2 * weight

    def enlarge(x):
        seen = torch.nn.functional.conv2d(x, kernel, padding=(0, cells), groups=3)
        return torch.nn.functional.interpolate(seen, scale_factor=2)

    return enlarge


def test_how_far_the_edge_of_a_tile_shows():
    assert reach_of(seeing(5, 0.2), 48, 24) == 10
    assert reach_of(seeing(17, 0.2), 48, 24) == 34
    assert reach_of(seeing(17, 0.0005), 48, 24) == 0, "less than a level"
    assert reach_of(seeing(5, 0.2), 200, 150) == 10, "more than the photograph is continued"


@pytest.mark.parametrize(
    ("reach", "usual", "expected"),
    [(0, 80, 80), (90, 80, 80), (120, 128, 128), (224, 128, 336), (225, 128, 344)],
)
def test_the_overlap_leaves_what_one_tile_shows_alone(reach, usual, expected):
    overlap = overlap_for(reach, usual, 8)
    assert overlap == expected
    axis = plan_axis(2048, 1024, overlap, 8)
    first_shared, last_shared = axis.ramp_begin(1), axis.ramp_begin(1) + axis.ramp
    assert 1024 - first_shared >= reach, "from the first tile's edge"
    assert last_shared - axis.starts[1] >= reach, "from the second tile's edge"
