from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tudsr_runtime.errors import NotFiniteError
from tudsr_runtime.tiling.axis import padding_index
from tudsr_runtime.tiling.plan import plan_upscale
from tudsr_runtime.tiling.resample import resize, upsample
from tudsr_runtime.tiling.stages import run_stages

TileFunction = Callable[[np.ndarray], np.ndarray]
TILE, OVERLAP = 64, 24
any_fixture = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).random((3, height, width), dtype=np.float32) * 2 - 1


def run(x: np.ndarray, factors: str, *functions: TileFunction, **options: Any) -> np.ndarray:
    """`x` through stages whose tiles are 64 px. These make of a tile what no model may."""
    plan = plan_upscale(x.shape[2], x.shape[1], None, factors, tile=TILE, overlap=OVERLAP)
    return np.concatenate(list(run_stages(x, plan.stages, functions, sanity=False, **options)), axis=1)


def identity(tile: np.ndarray) -> np.ndarray:
    return tile


@any_fixture
@given(
    height=st.integers(1, 90), width=st.integers(1, 90), factors=st.sampled_from(["2x2", "4x-", "-x2", "1x3"])
)
def test_identity_engines_return_the_upsampled_input(height: int, width: int, factors: str) -> None:
    x = picture(height, width)
    expected = x
    for factor in factors.replace("-", "").split("x"):
        expected = upsample(expected, int(factor)) if factor else expected
    result = run(x, factors, *[identity] * (2 - factors.count("-")))
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= 1e-6


@any_fixture
@given(value=st.floats(-1, 1, width=32), height=st.integers(1, 60), width=st.integers(1, 60))
def test_constants_are_kept(value: float, height: int, width: int) -> None:
    result = run(np.full((3, height, width), value, np.float32), "2x2", identity, identity)
    assert np.abs(result - np.float32(value)).max() < 1 / 255


@any_fixture
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    factor=st.integers(1, 4),
    strength=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_strength_runs_from_lanczos_to_the_model(
    height: int, width: int, factor: int, strength: float
) -> None:
    x = picture(height, width)
    model = run(x, f"{factor}x-", lambda tile: tile[..., ::-1])
    lanczos = resize(x, height * factor, width * factor)
    expected = np.clip(lanczos + strength * (model - lanczos), -1, 1)
    result = run(x, f"{factor}x-", lambda tile: tile[..., ::-1], strength=[strength])
    assert np.abs(result - expected).max() <= 1e-5


def test_each_stage_has_its_own_strength() -> None:
    x = picture(20, 30)
    first = resize(x, 40, 60).clip(-1, 1)
    result = run(x, "2x2", lambda tile: -tile, lambda tile: tile * 0.5, strength=[0.0, 1.0])
    assert np.abs(result - upsample(first, 2) * 0.5).max() <= 1e-5


def test_seams_are_no_steeper_than_the_ramp() -> None:
    """Each tile adds a constant of its own, the worst case for seams."""
    levels = iter(np.random.default_rng(1).uniform(-0.5, 0.5, 10_000))
    result = run(np.zeros((3, 150, 130), np.float32), "2x-", lambda tile: tile + np.float32(next(levels)))
    plan = plan_upscale(130, 150, None, "2x-", tile=TILE, overlap=OVERLAP)
    steepest = (
        np.pi / 2 / plan.stages[0].rows.ramp
    )  # Of a raised cosine of height 1, the greatest step there is.
    assert np.abs(np.diff(result, axis=1)).max() <= steepest * 1.01
    assert np.abs(np.diff(result, axis=2)).max() <= steepest * 1.01
    assert np.abs(result).max() <= 0.5


def test_edge_pixels_of_a_tile_count_only_at_the_picture_edge() -> None:
    """Damage within 8 px of a tile's edge, where the autoencoder sees a false border, stays out."""

    def damaged(tile: np.ndarray) -> np.ndarray:
        result = np.full_like(tile, 1)
        result[:, :, 8:-8, 8:-8] = tile[:, :, 8:-8, 8:-8]
        return result

    result = run(np.zeros((3, 100, 100), np.float32), "2x-", damaged)
    assert (result[:, 8:-8, 8:-8] == 0).all()
    assert (result[:, :8] == 1).all()


def test_engines_see_contiguous_float32_tiles_padded_by_reflection() -> None:
    seen: list[np.ndarray] = []

    def spy(tile: np.ndarray) -> np.ndarray:
        assert tile.flags.c_contiguous
        assert tile.dtype == np.float32
        seen.append(tile.copy())
        return tile

    x = picture(20, 30)
    run(x, "2x-", spy)
    canvas = upsample(x, 2)
    expected = canvas[:, padding_index(40, 64)][:, :, padding_index(60, 64)]
    assert len(seen) == 1
    assert np.abs(seen[0][0] - expected).max() <= 1e-6
    assert (seen[0][0][:, 40] == seen[0][0][:, 38]).all()


def test_stages_are_clamped_but_not_rounded_between() -> None:
    seen: list[np.ndarray] = []

    def spy(tile: np.ndarray) -> np.ndarray:
        seen.append(tile.copy())
        return tile

    run(np.full((3, 8, 8), 0.123456, np.float32), "2x2", identity, spy)
    assert (seen[0] == np.float32(0.123456)).all()
    result = run(np.full((3, 8, 8), 0.5, np.float32), "2x2", lambda tile: tile + 3, spy)
    assert (seen[1] == 1).all()
    assert (result == 1).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_not_finite_tile_is_named(poison: float) -> None:
    calls = 0

    def poisoned(tile: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        tile = tile.copy()
        if calls == 5:
            tile[0, 1, 20, 20] = poison
        return tile

    with pytest.raises(NotFiniteError, match="stage 1, tile row 2, column 2"):
        run(picture(64, 64), "2x-", poisoned)


def test_progress_counts_every_tile_of_every_stage() -> None:
    seen: list[tuple[int, int]] = []
    x = picture(50, 40)
    run(x, "2x2", identity, identity, progress=lambda done, total: seen.append((done, total)))
    tiles = plan_upscale(40, 50, None, "2x2", tile=TILE, overlap=OVERLAP).tiles
    assert seen == [(done, tiles) for done in range(1, tiles + 1)]


def test_rows_come_out_before_the_picture_is_done() -> None:
    calls = {"stage1": 0, "stage2": 0}

    def counting(stage: str) -> TileFunction:
        def count(tile: np.ndarray) -> np.ndarray:
            calls[stage] += 1
            return tile

        return count

    plan = plan_upscale(20, 400, None, "2x2", tile=TILE, overlap=OVERLAP)
    rows = run_stages(picture(400, 20), plan.stages, [counting("stage1"), counting("stage2")])
    next(rows)
    # one tile runs and one waits while a third is blended
    assert calls["stage1"] <= 2 * len(plan.stages[0].columns.starts) + 3
    assert calls["stage2"] <= len(plan.stages[1].columns.starts) + 2
    assert plan.stages[0].tiles == 20


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_tiles_at_a_time_do_not_change_the_picture(parallel: int) -> None:
    def slow_at_random(tile: np.ndarray) -> np.ndarray:
        time.sleep(abs(float(tile[0, 0, 0, 0])) / 500)
        return tile * np.float32(0.9)

    x = picture(70, 60)
    expected = run(x, "2x2", lambda tile: tile * np.float32(0.9), lambda tile: tile * np.float32(0.9))
    assert (run(x, "2x2", slow_at_random, slow_at_random, parallel=parallel) == expected).all()


def test_so_many_tiles_run_at_a_time() -> None:
    meeting = threading.Barrier(3, timeout=300)

    def meet(tile: np.ndarray) -> np.ndarray:
        meeting.wait()
        return tile

    run(picture(32, 60), "2x-", meet, parallel=3)  # would time out if fewer ran


def peak_memory(height: int) -> int:
    x = np.zeros((3, height, 16), np.float32)
    plan = plan_upscale(16, height, None, "2x2", tile=TILE, overlap=OVERLAP)
    tracemalloc.start()
    for _ in run_stages(x, plan.stages, [identity, identity]):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_peak_memory_does_not_grow_with_the_height() -> None:
    """3,600 rows more are 0.7 MB of input and 11 MB of output; which tiles meet in memory varies."""
    peak_memory(100)
    assert peak_memory(4000) < peak_memory(400) + 300_000


@pytest.mark.parametrize(("height", "width"), [(30, 170), (70, 60), (5, 300), (170, 30)])
def test_by_columns_the_model_sees_the_same_tiles(height: int, width: int) -> None:
    """A model that treats rows and columns differently, and every tile as what it is."""
    seen: dict[str, set[bytes]] = {"rows": set(), "columns": set()}

    def skewed(order: str) -> TileFunction:
        def function(tile: np.ndarray) -> np.ndarray:
            seen[order].add(np.round(tile, 4).tobytes())
            return np.clip(tile * np.linspace(0.8, 1, TILE, dtype=np.float32), -1, 1)

        return function

    x = picture(height, width) * np.float32(0.5)
    plan = plan_upscale(width, height, None, "2x2", tile=TILE, overlap=OVERLAP)
    by_rows = run(x, "2x2", skewed("rows"), skewed("rows"))
    turned = run_stages(
        np.ascontiguousarray(x.swapaxes(1, 2)), plan.turned.stages, [skewed("columns")] * 2, turned=True
    )
    by_columns = np.concatenate(list(turned), axis=1).swapaxes(1, 2)
    assert by_columns.shape == by_rows.shape
    assert np.abs(by_columns - by_rows).max() <= 1e-5
    assert len(seen["columns"]) == len(seen["rows"]) > 1


def test_by_columns_a_bad_tile_is_named_by_its_place() -> None:
    plan = plan_upscale(200, 20, None, "2x-", tile=TILE, overlap=OVERLAP)
    x, calls = np.zeros((3, 200, 20), np.float32), iter(range(100))

    def third(tile: np.ndarray) -> np.ndarray:
        return tile if next(calls) != 2 else tile * np.nan

    with pytest.raises(NotFiniteError, match="tile row 1, column 3"):
        list(run_stages(x, plan.turned.stages, [third], turned=True))


@pytest.mark.parametrize("side", [200, 4000])
def test_what_is_held_follows_the_shorter_side(side: int) -> None:
    """Tiles by columns of a wide picture hold what tiles by rows of a tall one do."""
    wide = plan_upscale(8000, side, 2, tile=512)
    tall = plan_upscale(side, 8000, 2, tile=512)
    assert wide.turned.stages == tall.stages
    assert wide.by_columns(0)
    assert not tall.by_columns(0)
    assert wide.turned.held_bytes == tall.held_bytes < wide.held_bytes
    assert not wide.by_columns(wide.held_bytes)
