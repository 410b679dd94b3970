"""The sizes of tiles that a picture may be cut into: which is taken, and what `--dry-run` says about it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runtime.conftest import MakeBundle, Tudsr
from tudsr_runtime.errors import UsageError
from tudsr_runtime.upscaler import Upscaler

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def of_stable_diffusion(component: str, tile: int) -> int:
    """A tile of Stable Diffusion 2.1 in all: what grows with its area, and what attention adds."""
    area = (tile / 512) ** 2
    return int((2.122 * area + 0.095 * area**2) * 1e12) if component.startswith("unet") else 0


@pytest.fixture(scope="module")
def bundle(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the sizes and the arithmetic of a full-size export."""
    folder = tmp_path_factory.mktemp("sized") / "b"
    return make_bundle(folder, smaller=(256,), larger=(576,), macs=of_stable_diffusion, overlap=80)


@pytest.fixture
def picture(tmp_path: Path) -> Callable[[int, int], Path]:
    def write(width: int, height: int) -> Path:
        path = tmp_path / f"{width}x{height}.png"
        Image.fromarray(np.full((height, width, 3), 128, np.uint8)).save(path)
        return path

    return write


# What the four rows of the paper's Table 3 may take, and what they take with tiles of 512 px alone.
ROWS = [(128, 4, 2.8, 4.4), (128, 8, 13.6, 22.2), (256, 4, 13.6, 22.2), (256, 8, 56.8, 75.4)]


@pytest.mark.parametrize(("side", "scale", "limit", "before"), ROWS)
def test_the_rows_of_table_3_take_no_more_than_they_have_to(
    tudsr: Tudsr, bundle: Path, picture: Callable, side: int, scale: int, limit: float, before: float
) -> None:
    result = tudsr(
        *("upscale", picture(side, side), "--scale", scale, "--bundle", bundle, "--device", "cpu"),
        "--dry-run",
    )
    assert result.code == 0
    (printed,) = re.findall(r"tiles, ([\d.]+) TMAC", result.out)
    assert float(printed) <= limit
    with Upscaler(bundle, device="cpu", overlap=128) as upscaler:
        plan = upscaler.plan(side, side, scale)
        alone = [(cut.cost, stage.stage) for stage in plan.stages for cut in stage.weighed if cut.tile == 512]
    assert sum(cost for cost, _ in alone if cost is not None) == pytest.approx(before, abs=0.05)


def test_the_sizes_that_were_weighed_are_shown(tudsr: Tudsr, bundle: Path, picture: Callable) -> None:
    command = ("upscale", picture(128, 128), "--scale", 4, "--bundle", bundle, "--device", "cpu", "--dry-run")
    assert (
        "stage 1: 1 tile of 256 px (0.536 TMAC), rather than 1 tile of 512 px (2.2 TMAC) "
        "or 1 tile of 576 px (2.8 TMAC)"
    ) in tudsr(*command).err
    assert re.search(r"stage 2 with 576 px: [\d.]+ MB of graphs and weights", tudsr(*command).err)
    (record, _) = tudsr(*command, "--json").records
    assert [(one["stage"], one["tile"], one["tiles"]) for one in record["weighed"]] == [
        (1, 256, 1), (1, 512, 1), (1, 576, 1), (2, 512, 1), (2, 576, 1), (2, 256, 9),
    ]  # fmt: skip


def test_bundle_info_gives_sizes_and_arithmetic(tudsr: Tudsr, bundle: Path, small_bundle: Path) -> None:
    shown = tudsr("bundle", "info", bundle).out
    assert re.search(r"tiles: +576, 512, 256 px; made for 512 px", shown)
    assert re.search(r"overlap: +at least 80 px \(measured\)", shown)
    assert re.search(r"TMAC of stage2: +2\.84 at 576 px, 2\.22 at 512 px, 0\.536 at 256 px", shown)
    older = tudsr("bundle", "info", small_bundle).out
    assert re.search(r"overlap: +not measured, 128 px", older)
    assert "TMAC" not in older


def test_a_bundle_that_counts_nothing_is_cut_as_before(
    tudsr: Tudsr, make_bundle: MakeBundle, tmp_path: Path, picture: Callable
) -> None:
    bundle = make_bundle(tmp_path / "old")
    assert "macs" not in (bundle / "bundle.json").read_text()
    command = ("upscale", picture(256, 256), "--bundle", bundle, "--device", "cpu", "--dry-run")
    result = tudsr(*command)
    assert "34 tiles, factors" in result.out
    assert "rather than" not in result.err
    (record, _) = tudsr(*command, "--json").records
    assert {one["tile"] for one in record["weighed"]} == {512}


def test_one_size_alone_may_be_asked_for(bundle: Path) -> None:
    with Upscaler(bundle, device="cpu", tile=512, overlap=128) as upscaler:
        plan = upscaler.plan(256, 256, 8)
        assert upscaler.settings["tile"] == 512
    assert [stage.tiles for stage in plan.stages] == [9, 25]
    assert plan.cost == pytest.approx(75.4, abs=0.05)
    assert {cut.tile for stage in plan.stages for cut in stage.weighed} == {512}
    for size in (300, "512", 0):
        with pytest.raises(UsageError, match="tile must be a size that test has, 576, 512, 256 px, not"):
            Upscaler(bundle, device="cpu", tile=size)  # type: ignore[arg-type]


def test_an_overlap_that_was_asked_for_is_kept(bundle: Path) -> None:
    with Upscaler(bundle, device="cpu", overlap=200) as upscaler:
        plan = upscaler.plan(256, 256, 8)
    assert {cut.tile for stage in plan.stages for cut in stage.weighed} == {512, 576}
    for stage in plan.stages:
        starts = stage.columns.starts
        assert min(a + stage.columns.tile - b for a, b in itertools.pairwise(starts)) >= 200
