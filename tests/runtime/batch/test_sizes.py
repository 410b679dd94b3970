"""How large a result becomes: by scale, factors, pixels, and what limits it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from PIL import Image

from tests.runtime.batch.drawn import draw, files, size
from tests.runtime.conftest import Tudsr
from tudsr_runtime.batch.target_size import TargetSize, target_size
from tudsr_runtime.errors import UsageError


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        (["--scale", "2.5"], "photo_x2.5.png", (33, 23)),
        (["--factors", "2x2"], "photo_x4.png", (52, 36)),
        (["--factors", "4x-"], "photo_x4.png", (52, 36)),
        (["--factors", "2x2", "--scale", "3"], "photo_x3.png", (39, 27)),
    ],
)
def test_scale_and_factors(
    tudsr: Tudsr, photo: Path, options: list[str], name: str, expected: tuple[int, int]
) -> None:
    assert tudsr("upscale", photo, *options).code == 0
    assert size(photo.with_name(name)) == expected


def test_a_result_that_is_too_large_is_refused_before_work(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "photo.png", 200, 200)
    result = tudsr("upscale", tmp_path / "photo.png", "--max-output-megapixels", "1")
    assert (result.code, result.out) == (3, "")
    assert "200 x 200 would become 1600 x 1600, 3 megapixels; the limit is 1" in result.err


def largest(width: int, height: int, limit: int) -> float:
    """The largest scale in hundredths, tried one by one."""
    tried = [n / 100 for n in range(100, 3201)]
    fitting = [s for s in tried if int(width * s + 0.5) * int(height * s + 0.5) // 10**6 <= limit]
    return max(fitting)


@pytest.mark.parametrize("options", [(), ("--scale", "32"), ("--width", "4000"), ("--megapixels", "9")])
def test_a_picture_that_would_be_too_large_gets_a_command_that_is_accepted(
    tudsr: Tudsr, tmp_path: Path, options: tuple[str, ...]
) -> None:
    photo = tmp_path / "my photo.png"
    Image.new("RGB", (400, 300), "olive").save(photo)
    result = tudsr("upscale", photo, *options, "--max-output-megapixels", "2", "--dry-run")
    assert result.code == 3
    (hint,) = [line for line in result.err.splitlines() if line.startswith("Try: ")]
    words = shlex.split(hint.removeprefix("Try: "))
    assert words[:3] == ["tudsr", "upscale", str(photo)]
    assert float(words[words.index("--scale") + 1]) == largest(400, 300, 2)
    again = tudsr(*words[1:])
    assert again.code == 0, again.err


def test_a_format_that_is_too_small_gets_a_command_that_is_accepted(tudsr: Tudsr, tmp_path: Path) -> None:
    photo = tmp_path / "wide.webp"
    Image.new("RGB", (4000, 10)).save(photo)
    result = tudsr("upscale", photo, "--dry-run")
    assert result.code == 8
    command = result.err.rpartition(", or ")[2]
    assert "--scale 4.09" in command
    assert tudsr(*shlex.split(command)[1:]).code == 0


def test_where_nothing_fits_the_limit_is_named(tudsr: Tudsr, tmp_path: Path) -> None:
    photo = tmp_path / "a.png"
    Image.new("RGB", (2000, 1500)).save(photo)
    result = tudsr("upscale", photo, "--scale", "2", "--max-output-megapixels", "2", "--dry-run")
    assert "Try: --max-output-megapixels 12" in result.err
    options = ("--scale", "2", "--max-output-megapixels", "12", "--dry-run")
    assert tudsr("upscale", photo, *options).code == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--width", "50"], (50, 35)),
        (["--height", "50"], (72, 50)),
        (["--longest", "100"], (100, 69)),
        (["--megapixels", "0.01"], (120, 83)),
        (["--width", "60", "--height", "45"], (60, 45)),
        (["--width", "50", "--factors", "4x-"], (50, 35)),
    ],
)
def test_sizes_in_pixels_are_met_exactly(
    tudsr: Tudsr, tmp_path: Path, options: list[str], expected: tuple[int, int]
) -> None:
    result = tudsr("upscale", draw(tmp_path / "a.png"), *options)
    assert result.code == 0
    assert result.out == f"{tmp_path / 'a_{}x{}.png'.format(*expected)}\n"
    assert size(Path(result.out.strip())) == expected
    assert ("stretched: 60 x 45 is 8.3 % taller" in result.err) == ("45" in options)


@pytest.mark.parametrize(
    "options",
    [
        ["--width", "12"],
        ["--longest", "1000"],
        ["--scale", "2", "--width", "50"],
        ["--longest", "50", "--megapixels", "1"],
        ["--megapixels", "-1"],
        ["--megapixels", "nan"],
        ["--width", "0"],
    ],
)
def test_sizes_that_cannot_be_meant_are_refused(tudsr: Tudsr, tmp_path: Path, options: list[str]) -> None:
    assert tudsr("upscale", draw(tmp_path / "a.png"), *options).code == 2
    assert files(tmp_path) == ["a.png"]


def test_a_size_of_a_picture_of_one_pixel() -> None:
    assert TargetSize(longest=5).of(1000, 1) == (5, 1)
    assert TargetSize(megapixels=1e-9).of(1, 1) == (1, 1)
    assert target_size(8, None, None, None, None) is None
    with pytest.raises(UsageError, match="--width/--height and --scale"):
        target_size(8, None, None, None, None) or target_size(8, 1, 2, None, None)
