"""Pictures whose edges meet: enlarged as if the plane were tiled with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.seamless import steps, texture
from tests.runtime.conftest import Tudsr
from tudsr_runtime import Upscaler
from tudsr_runtime.errors import UsageError
from tudsr_runtime.pictures.transparency import AlphaRows
from tudsr_runtime.planes import WRAPS, PlanarView

MakeBundle = Callable[..., Path]
AROUND = 48
"""Px of a picture's neighbours that its enlargement may depend on."""


@pytest.fixture(scope="module")
def bundle(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that changes nothing, so that what tiles show in common is equal."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", tile=64)


@pytest.fixture(scope="module")
def nano() -> Iterator[dict[str, Upscaler]]:
    opened = {wrap: Upscaler("nano", threads=1, wrap=wrap) for wrap in WRAPS}
    yield opened
    for one in opened.values():
        one.close()


def random(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).random((height, width, channels), np.float32)


def copies(length: int) -> int:
    """An odd number, enough for `AROUND` on either side of the middle one."""
    return 2 * math.ceil(AROUND / length) + 1


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    wrap=st.sampled_from(["x", "xy"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    grown=st.tuples(st.floats(1, 5), st.floats(1, 5)),
    factors=st.sampled_from(["2x2", "4x-", "-x2", "4x2"]),
    color=st.sampled_from(["lowfreq", "wavelet", "none"]),
)
def test_a_wrapped_picture_is_enlarged_as_the_middle_of_a_plane_of_it(
    bundle: Path, wrap: str, size: tuple[int, int], grown: tuple[float, float], factors: str, color: str
) -> None:
    height, width = size
    x = random(height, width)
    to = max(width, round(width * grown[0])), max(height, round(height * grown[1]))
    across, down = (
        copies(side) if meets else 1 for side, meets in zip((width, height), WRAPS[wrap], strict=True)
    )
    with Upscaler(bundle, "onnxruntime", threads=1, overlap=24, color=color, wrap=wrap) as upscaler:
        found = upscaler.upscale(x, factors=factors, size=to)
    with Upscaler(bundle, "onnxruntime", threads=1, overlap=24, color=color) as upscaler:
        plane = upscaler.upscale(
            np.tile(x, (down, across, 1)), factors=factors, size=(to[0] * across, to[1] * down)
        )
    left, top = across // 2 * to[0], down // 2 * to[1]
    assert found.shape == (to[1], to[0], 3)
    assert np.abs(found - plane[top : top + to[1], left : left + to[0]]).max() < 2e-4


@pytest.mark.parametrize("scale", [4, 2.6])
def test_the_step_at_the_wrap_is_no_larger_than_inside(nano: dict[str, Upscaler], scale: float) -> None:
    small = texture(96)
    none, both = (nano[wrap].upscale(small, scale) for wrap in ("none", "xy"))
    for axis in (0, 1):
        at_the_wrap, *inside = steps(both, axis)
        assert at_the_wrap <= max(inside)
        assert steps(none, axis)[0] > 1.2 * max(steps(none, axis)[1:]), "else the above proves nothing"


def test_one_axis_wraps_alone(nano: dict[str, Upscaler]) -> None:
    small = texture(96)
    across = nano["x"].upscale(small, 4)
    assert steps(across, 1)[0] <= max(steps(across, 1)[1:])
    assert steps(across, 0)[0] > max(steps(across, 0)[1:])


@pytest.mark.parametrize("size", [(200, 6), (6, 200), (1, 1), (70, 70)])
@pytest.mark.parametrize("wrap", ["x", "xy"])
def test_all_tiles_are_counted_and_the_size_is_exact(bundle: Path, size: tuple[int, int], wrap: str) -> None:
    told: list[tuple[int, int]] = []
    with Upscaler(bundle, threads=1, overlap=24, wrap=wrap) as upscaler:
        plan = upscaler.plan(*size, 3.3)
        result = upscaler.upscale(random(size[1], size[0]), 3.3, progress=lambda *now: told.append(now))
    assert result.shape[:2] == tuple(math.floor(side * 3.3 + 0.5) for side in reversed(size))
    assert told[-1] == (plan.tiles, plan.tiles)
    assert f"wrapped ({wrap})" in plan.reason


def test_alpha_wraps_too() -> None:
    alpha = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)
    for wrap, (across, down) in (("x", (3, 1)), ("xy", (3, 3))):
        plane = AlphaRows(np.tile(alpha, (down, across)), 28 * across, 27 * down, alpha.dtype).rows(
            0, 27 * down
        )
        left, top = across // 2 * 28, down // 2 * 27
        found = AlphaRows(alpha, 28, 27, alpha.dtype, WRAPS[wrap])
        rows = np.concatenate([found.rows(0, 10), found.rows(10, 27)])
        assert np.abs(rows.astype(int) - plane[top : top + 27, left : left + 28]).max() <= 1


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 5), st.integers(1, 5))
def test_the_margin_of_a_view_is_the_other_side(across: int, down: int, height: int, width: int) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    padded = np.pad(levels, ((down, down), (across, across), (0, 0)), mode="wrap")
    view, expected = PlanarView(levels, (across, down)), PlanarView(padded)
    assert view.shape == expected.shape
    assert (view[:, 1 : height + 2 * down] == expected[:, 1 : height + 2 * down]).all()


def test_the_command_wraps_colour_and_transparency(tudsr: Tudsr, tmp_path: Path) -> None:
    levels = (random(12, 20, 4) * 255).astype(np.uint8)
    levels[..., 3] |= 1  # what cannot be seen at all takes its colour from blocks, which have edges
    Image.fromarray(levels, "RGBA").save(tmp_path / "a.png")
    Image.fromarray(np.roll(levels, 7, axis=1), "RGBA").save(tmp_path / "b.png")
    done = tudsr("upscale", tmp_path / "a.png", tmp_path / "b.png", "--wrap", "x", "--scale", "4")
    assert done.code == 0, done.err
    a, b = (np.asarray(Image.open(tmp_path / f"{name}_x4.png")).astype(int) for name in "ab")
    assert np.abs(np.roll(a, 28, axis=1) - b).max() <= 1
    assert (
        "1 skipped" not in tudsr("upscale", tmp_path / "a.png", "--scale", "4", "--on-exists", "rename").err
    )
    assert tudsr("upscale", tmp_path / "a.png", "--wrap", "y").code == 2


def test_transparency_wraps_where_tiles_go_by_columns(bundle: Path) -> None:
    levels = (random(10, 60, 4) * 255).astype(np.uint8)
    levels[..., 3] |= 1  # as above
    with Upscaler(bundle, threads=1, overlap=24, wrap="x") as upscaler:
        assert upscaler.plan(60, 10, 4).by_columns(0)
        a, b = (upscaler.upscale(each, 4).astype(int) for each in (levels, np.roll(levels, 7, axis=1)))
    assert np.abs(np.roll(a, 28, axis=1) - b).max() <= 1


def test_no_other_edges_meet(bundle: Path) -> None:
    with pytest.raises(UsageError, match="wrap must be one of none, x, xy"):
        Upscaler(bundle, wrap="y")
