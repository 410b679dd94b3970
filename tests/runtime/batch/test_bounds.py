"""Memory: wide pictures go by columns into every format; what does not fit is refused before it is begun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli
from tests.runtime.conftest import Tudsr
from tudsr_runtime import machine
from tudsr_runtime.batch.estimate import goes_by_columns, host_bytes
from tudsr_runtime.machine import FreeMemory
from tudsr_runtime.pictures.read import read_header, read_picture
from tudsr_runtime.tiling.plan import plan_upscale

LOSSY = ("jpg", "webp", "avif")
"""Codecs that see other blocks of pixels when a picture is turned."""


def smooth(height: int, width: int, channels: int, dtype: type) -> np.ndarray:
    grid = np.random.default_rng(0).random((3, 12, channels)).astype(np.float32)
    rows = np.linspace(0, 2, height)[:, None], np.linspace(0, 11, width)[None]
    low = grid[rows[0].astype(int), rows[1].astype(int)]
    return (low * np.iinfo(dtype).max).astype(dtype)


def save(levels: np.ndarray, path: Path) -> Path:
    """By tudsr's own writer, as Pillow writes no colour of 16 bits."""
    from tudsr_runtime.pictures.picture import from_channels
    from tudsr_runtime.pictures.write import write_picture

    picture = from_channels(levels)
    top = np.iinfo(levels.dtype).max
    colour = picture.levels if picture.levels.ndim == 3 else np.dstack([picture.levels] * 3)
    write_picture(picture, [colour.astype(np.float32) / top], levels.shape[1], levels.shape[0], path)
    return path


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        *((suffix, np.uint8) for suffix in ("png", "tif", "jpg", "webp", "bmp", "avif")),
        *((suffix, np.uint16) for suffix in ("png", "tif")),
    ],
)
def test_a_wide_result_is_a_tall_one_that_is_turned(
    tudsr: Tudsr, tmp_path: Path, suffix: str, channels: int, dtype: type
) -> None:
    if channels == 4 and suffix in ("jpg", "bmp"):
        pytest.skip(f"{suffix} holds no transparency")
    levels = smooth(20, 200, channels, dtype)
    wide = save(levels[..., 0] if channels == 1 else levels, tmp_path / "wide.png")
    turned = np.ascontiguousarray(levels.swapaxes(0, 1))
    tall = save(turned[..., 0] if channels == 1 else turned, tmp_path / "tall.png")
    header, target = read_header(wide), tmp_path / f"wide_x2.{suffix}"
    assert goes_by_columns(plan_upscale(200, 20, 2, tile=256), header, target)
    assert not goes_by_columns(plan_upscale(20, 200, 2, tile=256), read_header(tall), target)
    result = tudsr("upscale", wide, tall, "--scale", "2", "--format", suffix)
    assert result.code == 0, result.err
    made, other = (read_picture(read_header(tmp_path / f"{name}_x2.{suffix}")) for name in ("wide", "tall"))
    assert (made.width, made.height) == (400, 40)
    step = np.iinfo(made.levels.dtype).max / 255
    for a, b in ((made.levels, other.levels), (made.alpha, other.alpha)):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            off = np.abs(a.astype(int) - b.swapaxes(0, 1)) / step
            assert off.mean() <= 3 if suffix in LOSSY else off.max() <= 1


def test_what_does_not_fit_is_refused_before_it_is_begun(
    tudsr: Tudsr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (40, 30), (90, 120, 60)).save(tmp_path / "small.png")
    Image.new("RGB", (400, 300), (90, 120, 60)).save(tmp_path / "large.png")
    (record,) = tudsr("upscale", tmp_path / "small.png", "--dry-run", "--json").records[:1]
    needed = record["estimate"]["host_bytes"]  # type: ignore[index]
    monkeypatch.setattr(machine, "free_memory", lambda: FreeMemory(needed, "of the control group"))
    monkeypatch.setattr(
        "tudsr_runtime.batch.job.read_picture",
        lambda header, *_: pytest.fail("decoded") if "large" in str(header.path) else read_picture(header),
    )
    result = tudsr("upscale", tmp_path / "small.png", tmp_path / "large.png")
    assert result.code == 4
    assert "large.png: 3200 x 2400 px needs about" in result.err
    assert f"and {needed / 1e6:.0f} MB of the control group are free" in result.err
    assert (tmp_path / "small_x8.png").exists()
    alone = tudsr("upscale", tmp_path / "large.png")
    assert (alone.code, alone.out) == (7, "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's ulimit -v")
def test_a_run_with_little_memory_ends_with_7(tmp_path: Path, small_bundle: Path) -> None:
    """For real: what the process may take is less than it says that it needs."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    Image.new("L", (6000, 6000), 90).save(tmp_path / "photo.png", compress_level=1)
    line = [
        sys.executable,
        cli.__file__,
        "upscale",
        str(tmp_path / "photo.png"),
        "--bundle",
        str(small_bundle),
    ]
    line += ["--threads", "1", "--backend", "onnxruntime", "--max-output-megapixels", "3000"]
    script = 'ulimit -v 1300000 && exec "$0" "$@"'
    # numpy's library would claim address space for every processor.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(["sh", "-c", script, *line], capture_output=True, text=True, env=environment)
    assert ended.returncode == 7, ended.stderr
    assert "MB of ulimit -v are free" in ended.stderr
    assert not (tmp_path / "photo_x8.png").exists()


def test_the_estimate_counts_decoding_and_the_whole_picture_s_colours(tmp_path: Path) -> None:
    Image.new("RGBA", (3000, 2000)).save(tmp_path / "photo.png")
    header, plan = (
        read_header(tmp_path / "photo.png"),
        plan_upscale(3000, 2000, 1, "-x1", tile=64, overlap=24),
    )
    by_color = {
        color: host_bytes(plan, header, tmp_path / "out.png", color) for color in ("lowfreq", "adain")
    }
    assert by_color["lowfreq"] == header.decoding_bytes > 60 * 3000 * 2000
    large = plan_upscale(3000, 2000, 8)
    grows = [host_bytes(large, header, tmp_path / "out.png", color) for color in ("lowfreq", "adain")]
    assert grows[1] - grows[0] == 12 * 3000 * 2000 * 64
