"""Runs over several pictures: what exists, what is done, patterns, two at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.batch.drawn import ROOT, draw, files, size, start, until_ready
from tests.runtime.conftest import Tudsr
from tudsr_runtime import atomic, terminal
from tudsr_runtime.batch import done as record
from tudsr_runtime.errors import TudsrError, UsageError
from tudsr_runtime.upscaler import Upscaler


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, whose results are to go to `out`."""
    draw(tmp_path / "in" / "a.png")
    draw(tmp_path / "in" / "b.png", 20, 5)
    return tmp_path


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
    assert files(folder / "out") == expected
    assert "skipped" in tudsr(*run).err or policy == "overwrite"
    assert files(folder / "out") == expected


def test_one_output_gets_another_name_or_is_skipped(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    for _ in range(3):
        assert tudsr("upscale", tmp_path / "a.png", "--on-exists", "rename").code == 0
    assert files(tmp_path) == ["a.png", "a_x8.png", "a_x8_1.png", "a_x8_2.png"]
    result = tudsr("upscale", tmp_path / "a.png", "--on-exists", "skip")
    assert (result.code, result.out) == (0, "")
    assert "skipped" in result.err
    assert tudsr("upscale", tmp_path).err.count("earlier results") == 1


def test_a_record_that_is_damaged_is_no_record(folder: Path, tudsr: Tudsr) -> None:
    run = ("upscale", folder / "in", "-o", folder / "out")
    assert tudsr(*run).code == 0
    with open(folder / "out" / record.RECORD_FILE, "ab") as file:
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
    assert files(tmp_path) == ["a"]


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
    assert len(files(tmp_path)) == 1
    result = tudsr("upscale", draw(tmp_path / "a.png"))
    assert "removed 1 unfinished" in result.err
    assert files(tmp_path) == ["a.png", "a_x8.png"]


SLOW = """
import sys, time, cli
from tudsr_runtime.upscaler import Upscaler
whole = Upscaler.upscale_rows
def upscale_rows(self, *rest, **options):
    print("ready", file=sys.stderr, flush=True)
    time.sleep(PICTURE_SECONDS)
    yield from whole(self, *rest, **options)
Upscaler.upscale_rows = upscale_rows
sys.exit(cli.main())
"""


def start_slow(seconds: float, *arguments: object) -> subprocess.Popen[str]:
    """`tudsr upscale` as a process that takes so long for each picture."""
    script = f"PICTURE_SECONDS = {seconds}\n{SLOW}"
    return start(script, "upscale", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("policy", ["skip", "error", "rename"])
def test_two_runs_at_once_share_the_work(tmp_path: Path, small_bundle: Path, policy: str) -> None:
    count = 8
    for number in range(count):
        draw(tmp_path / "in" / f"{number}.png")
    run = (tmp_path / "in", "-o", tmp_path / "out", "--on-exists", policy, "--bundle", small_bundle)
    both = [start_slow(0.2, *run), start_slow(0.2, *run)]
    done = [(*process.communicate(), process.returncode) for process in both]
    for _, said, code in done:
        assert code == 0, said
    made = [path for out, _, _ in done for path in out.splitlines()]
    assert len(made) == len(set(made)) == count
    assert files(tmp_path / "out") == [f"{number}_x8.png" for number in range(count)]
    assert size(tmp_path / "out" / "0_x8.png") == (104, 72)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_that_was_killed_keeps_no_picture_to_itself(folder: Path, small_bundle: Path) -> None:
    run = (folder / "in", "-o", folder / "out", "--on-exists", "skip", "--bundle", small_bundle)
    with start_slow(600, *run) as process:
        until_ready(process)
        other = start_slow(0, *run)
        out, said = other.communicate()
        process.send_signal(signal.SIGKILL)
    assert (other.returncode, out) == (0, f"{folder / 'out' / 'b_x8.png'}\n")
    assert "a_x8.png is being made by another run" in said
    last = start_slow(0, *run)
    out, said = last.communicate()
    assert (last.returncode, out) == (0, f"{folder / 'out' / 'a_x8.png'}\n"), said
    assert files(folder / "out") == ["a_x8.png", "b_x8.png"]


@pytest.mark.parametrize(("policy", "code"), [("skip", 0), ("error", 4)])
def test_a_file_of_others_that_appears_while_a_picture_is_computed(
    tudsr: Tudsr, folder: Path, monkeypatch: pytest.MonkeyPatch, policy: str, code: int
) -> None:
    whole = Upscaler.upscale_rows

    def upscale_rows(self: Upscaler, *rest: object, **options: object) -> Iterator[np.ndarray]:
        (folder / "out" / "a_x8.png").write_bytes(b"theirs")
        return whole(self, *rest, **options)

    monkeypatch.setattr(Upscaler, "upscale_rows", upscale_rows)
    result = tudsr("upscale", folder / "in", "-o", folder / "out", "--on-exists", policy)
    assert result.code == code
    assert ("skipped, " in result.err) == (code == 0)
    assert (folder / "out" / "a_x8.png").read_bytes() == b"theirs"
    assert size(folder / "out" / "b_x8.png") == (160, 40)


def test_a_name_that_is_too_long_does_not_stop_the_folder(tudsr: Tudsr, folder: Path) -> None:
    draw(folder / "in" / ("n" * 250 + ".png"))
    result = tudsr("upscale", folder / "in", "-o", folder / "out")
    assert result.code == 4
    assert "too long" in result.err
    assert "2 ok, 1 failed" in result.err
    assert files(folder / "out") == ["a_x8.png", "b_x8.png"]


def test_a_folder_that_cannot_be_written_does_not_stop_the_others(tudsr: Tudsr, folder: Path) -> None:
    draw(folder / "in" / "sub" / "c.png")
    (folder / "out").mkdir()
    (folder / "out" / "sub").write_bytes(b"a file")
    result = tudsr("upscale", folder / "in", "-r", "-o", folder / "out")
    assert result.code == 4
    assert "cannot write to the folder" in result.err
    assert files(folder / "out") == ["a_x8.png", "b_x8.png", "sub"]
    assert tudsr("upscale", folder / "in", "-o", folder / "out" / "sub" / "x").code == 8


def test_pictures_of_one_name_and_one_format(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.jpg")
    draw(tmp_path / "in" / "a.png")
    draw(tmp_path / "in" / "b.png")
    run = ("upscale", tmp_path / "in", "-o", tmp_path / "out", "--format", "png")
    result = tudsr(*run)
    assert (result.code, "1 ok, 2 failed" in result.err) == (4, True)
    assert result.err.count("--on-exists rename") == 2
    assert files(tmp_path / "out") == ["b_x8.png"]
    assert tudsr(*run, "--on-exists", "rename").code == 0
    assert files(tmp_path / "out") == ["a_x8.png", "a_x8_1.png", "b_x8.png"]
    assert "3 skipped" in tudsr(*run, "--on-exists", "rename").err


def test_pictures_named_like_results_are_enlarged_elsewhere_too(tudsr: Tudsr, tmp_path: Path) -> None:
    for name in ("wall.jpg", "wall_1920x1080.jpg", "icon.png", "icon_x2.png"):
        draw(tmp_path / "in" / name)
    result = tudsr("upscale", tmp_path / "in", "-o", tmp_path / "out", "--scale", "2")
    assert (result.code, "4 ok" in result.err) == (0, True)
    assert "icon_x2.png, wall_1920x1080.jpg: named like a result" in result.err
    # In place: what was made from a neighbour is told by the record, whatever it is called.
    draw(tmp_path / "in" / "c.png")
    for _ in range(2):
        tudsr("upscale", tmp_path / "in", "--scale", "3")
    assert len(files(tmp_path / "in")) == 10


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX modes")
def test_overwriting_keeps_a_private_picture_private_and_tells_of_links(tudsr: Tudsr, tmp_path: Path) -> None:
    source, target = draw(tmp_path / "a.png"), tmp_path / "a_x8.png"
    target.write_bytes(b"old")
    target.chmod(0o600)
    (tmp_path / "link.png").hardlink_to(target)
    result = tudsr("upscale", source, "--overwrite")
    assert target.stat().st_mode & 0o777 == 0o600
    assert (result.code, size(target)) == (0, (104, 72))
    assert "its other names (hard links: 1) keep the old picture" in result.err
    assert (tmp_path / "link.png").read_bytes() == b"old"


def test_patterns_and_formats(tudsr: Tudsr, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(folder / "in" / "deep" / "c.png")
    monkeypatch.chdir(folder)
    result = tudsr("upscale", "in/**/*.png", "-o", "out", "--format", "webp")
    assert result.code == 0
    assert files(folder / "out") == ["a_x8.webp", "b_x8.webp", "c_x8.webp"]
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
