"""Runs over several pictures: what exists, what is done, sizes in pixels, pipes, patterns, two at once."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli
from tests.runtime.conftest import Tudsr
from tudsr_runtime import atomic, record, terminal
from tudsr_runtime.errors import TudsrError, UsageError
from tudsr_runtime.size import TargetSize, target_size

ROOT = Path(cli.__file__).parent


def draw(path: Path, width: int = 13, height: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(levels).save(path)
    return path


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != record.NAME)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, whose results are to go to `out`."""
    draw(tmp_path / "in" / "a.png")
    draw(tmp_path / "in" / "b.png", 20, 5)
    return tmp_path


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
    assert names(tmp_path) == ["a.png"]


def test_a_size_of_a_picture_of_one_pixel() -> None:
    assert TargetSize(longest=5).of(1000, 1) == (5, 1)
    assert TargetSize(megapixels=1e-9).of(1, 1) == (1, 1)
    assert target_size(8, None, None, None, None) is None
    with pytest.raises(UsageError, match="--width/--height and --scale"):
        target_size(8, None, None, None, None) or target_size(8, 1, 2, None, None)


def test_a_run_goes_on_with_what_is_not_done_or_not_the_same(tudsr: Tudsr, folder: Path) -> None:
    run = ("upscale", folder / "in", "-o", folder / "out")
    assert tudsr(*run).code == 0
    assert "2 skipped" in tudsr(*run).err
    (folder / "out" / "a_x8.png").unlink()
    assert tudsr(*run).out == f"{folder / 'out' / 'a_x8.png'}\n"
    draw(folder / "in" / "b.png", 19, 5)
    result = tudsr(*run)
    assert result.code == 4
    assert "1 failed, 1 skipped" in result.err
    assert "b_x8.png exists already\nTry: --on-exists" in result.err
    result = tudsr(*run, "--color", "none")
    assert "2 failed" in result.err
    assert size(folder / "out" / "b_x8.png") == (160, 40)


@pytest.mark.parametrize("policy", ["skip", "overwrite", "rename", "error"])
def test_what_becomes_of_an_output_that_exists(tudsr: Tudsr, folder: Path, policy: str) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "a_x8.png").write_bytes(b"mine")
    run = ("upscale", folder / "in", "-o", folder / "out", "--on-exists", policy)
    result = tudsr(*run)
    assert result.code == (4 if policy == "error" else 0)
    kept = (folder / "out" / "a_x8.png").read_bytes() == b"mine"
    assert kept == (policy != "overwrite")
    expected = ["a_x8.png", "b_x8.png"] if policy != "rename" else ["a_x8.png", "a_x8_1.png", "b_x8.png"]
    assert names(folder / "out") == expected
    assert "skipped" in tudsr(*run).err or policy == "overwrite"
    assert names(folder / "out") == expected


def test_one_output_gets_another_name_or_is_skipped(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    for _ in range(3):
        assert tudsr("upscale", tmp_path / "a.png", "--on-exists", "rename").code == 0
    assert names(tmp_path) == ["a.png", "a_x8.png", "a_x8_1.png", "a_x8_2.png"]
    result = tudsr("upscale", tmp_path / "a.png", "--on-exists", "skip")
    assert (result.code, result.out) == (0, "")
    assert "skipped" in result.err
    assert tudsr("upscale", tmp_path).err.count("earlier results") == 1


def test_a_record_that_is_damaged_is_no_record(folder: Path, tudsr: Tudsr) -> None:
    run = ("upscale", folder / "in", "-o", folder / "out")
    assert tudsr(*run).code == 0
    with open(folder / "out" / record.NAME, "ab") as file:
        file.write(b'\xff{"half a line\n[]\n{"input": 1}\n')
    assert "2 skipped" in tudsr(*run).err
    (folder / "out" / "a_x8.png").write_bytes(b"another size")
    assert tudsr(*run).code == 4


def test_an_output_that_appears_in_the_meantime_is_left_alone(tmp_path: Path) -> None:
    def write() -> None:
        with atomic.atomic_write(tmp_path / "a", False) as file:
            file.write(b"ours")
            (tmp_path / "a").write_bytes(b"theirs")

    with pytest.raises(UsageError, match="meantime"):
        write()
    assert (tmp_path / "a").read_bytes() == b"theirs"
    assert names(tmp_path) == ["a"]


def test_a_file_system_without_links_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with atomic.atomic_write(tmp_path / "a", False) as file:
        file.write(b"ours")
    with pytest.raises(TudsrError), atomic.atomic_write(tmp_path / "a", False):
        pass
    assert (tmp_path / "a").read_bytes() == b"ours"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no open file and needs no lock")
def test_what_a_killed_run_left_is_swept_but_not_what_is_being_written(tmp_path: Path, tudsr: Tudsr) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tudsr_runtime.atomic import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); print('ready', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, tmp_path / "x.png"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert atomic.sweep(tmp_path) == 0
        process.send_signal(signal.SIGKILL)
    assert len(names(tmp_path)) == 1
    result = tudsr("upscale", draw(tmp_path / "a.png"))
    assert "removed 1 unfinished" in result.err
    assert names(tmp_path) == ["a.png", "a_x8.png"]


def test_two_runs_at_once_leave_whole_files(folder: Path, small_bundle: Path) -> None:
    command = [sys.executable, ROOT / "cli.py", "upscale", folder / "in", "-o", folder / "out"]
    both = [
        subprocess.Popen([*command, "--bundle", small_bundle], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    assert not any("Traceback" in text for text in said)
    assert {process.returncode for process in both} <= {0, 4}
    assert names(folder / "out") == ["a_x8.png", "b_x8.png"]
    assert size(folder / "out" / "a_x8.png") == (104, 72)


def test_a_picture_through_pipes(tmp_path: Path, small_bundle: Path) -> None:
    data = draw(tmp_path / "a.png").read_bytes()
    command = [sys.executable, ROOT / "cli.py", "upscale", "-", "--scale", "2", "--format", "jpg"]
    done = subprocess.run(
        [*command, "--bundle", small_bundle], cwd=tmp_path, input=data, capture_output=True, check=True
    )
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert (image.format, image.size) == ("JPEG", (26, 18))
    assert names(tmp_path) == ["a.png"]


def test_stdin_with_other_options(tudsr: Tudsr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw(tmp_path / "a.png").read_bytes()

    def run(stdin: bytes, *arguments: object) -> int:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return tudsr("upscale", *arguments).code

    assert run(data, "-", "-o", tmp_path / "b.tif") == 0
    assert size(tmp_path / "b.tif") == (104, 72)
    assert run(b"", "-") == 3
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no picture")))
    assert "error: stdin: " in tudsr("upscale", "-").err
    assert run(data, "-", "--json") == 2
    assert run(data, "-", tmp_path / "a.png", "-o", "-") == 2
    assert run(data, tmp_path, "-o", "-") == 2
    # The result of stdin would have no place to go.
    assert run(data, "-", tmp_path / "a.png") == 2
    assert names(tmp_path) == ["a.png", "b.tif"]


def test_patterns_and_formats(tudsr: Tudsr, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(folder / "in" / "deep" / "c.png")
    monkeypatch.chdir(folder)
    result = tudsr("upscale", "in/**/*.png", "-o", "out", "--format", "webp")
    assert result.code == 0
    assert names(folder / "out") == ["a_x8.webp", "b_x8.webp", "c_x8.webp"]
    assert tudsr("upscale", "in/*.jpg").code == 3
    assert tudsr("upscale", "in/a.png", "--format", "gif").code == 2
    assert tudsr("upscale", "in/a.png", "-o", "a.png", "--format", "jpg").code == 2


def test_progress_in_lines_where_there_is_no_terminal(
    tudsr: Tudsr, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0)
    result = tudsr("upscale", folder / "in", "--json")
    assert "1/2 a.png, tile 2 of 2; 2 of 4 in all, about 0:0" in result.err
    assert [json.loads(line) for line in result.out.splitlines()]
