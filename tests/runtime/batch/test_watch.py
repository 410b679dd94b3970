"""`tudsr watch`: pictures are taken when they are whole, once, and a watch can be stopped at any time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runtime.conftest import Tudsr
from tudsr_runtime.batch import watch_command
from tudsr_runtime.batch.done import RECORD_FILE
from tudsr_runtime.batch.inputs import Source
from tudsr_runtime.batch.watch_command import Alarm, Arrivals

TUDSR = Path(sys.executable).with_name("tudsr")
PATIENCE = 240
"""Seconds after which a watch that says nothing has hung."""


@pytest.fixture(autouse=True)
def watchfiles() -> None:
    pytest.importorskip("watchfiles", reason="needs watchfiles, the extra [watch]")


def draw(path: Path, seed: int = 0, side: int = 16) -> Path:
    """A picture that appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    partial = path.with_name(f".{path.name}.part")
    Image.fromarray(levels).save(partial, "PNG")
    partial.rename(path)
    return path


class Watch:
    """A running `tudsr watch`, whose streams are files."""

    def __init__(self, folder: Path, bundle: Path, *options: str) -> None:
        self.out, self.err = folder / "stdout", folder / "stderr"
        command = [
            TUDSR,
            "watch",
            "in",
            "out",
            "--scale",
            "2",
            "--threads",
            "1",
            "--bundle",
            bundle,
            *options,
        ]
        with open(self.out, "ab") as out, open(self.err, "ab") as err:
            self.process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err)

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds, as long as the watch lives and says something."""
        said, end = -1, 0.0
        while not holds():
            if (size := self.err.stat().st_size) != said:
                said, end = size, time.monotonic() + PATIENCE
            assert self.process.poll() is None, self.err.read_text()
            assert time.monotonic() < end, self.err.read_text()
            time.sleep(0.05)

    def says(self, text: str) -> bool:
        return text in self.err.read_text()

    @property
    def results(self) -> list[str]:
        """Names of the paths on stdout."""
        return [Path(line).name for line in self.out.read_text().splitlines()]

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


Start = Callable[..., Watch]


@pytest.fixture
def start(tmp_path: Path, small_bundle: Path) -> Iterator[Start]:
    (tmp_path / "in").mkdir()
    started: list[Watch] = []

    def run(*options: str) -> Watch:
        started.append(Watch(tmp_path, small_bundle, *options))
        return started[-1]

    yield run
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def made(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.name != RECORD_FILE)


def test_what_is_there_and_what_comes_is_done_and_a_restart_goes_on(start: Start, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png")
    watch = start("--settle", "0.2")
    watch.until(lambda: watch.results == ["a_x2.png"])
    draw(tmp_path / "in" / "b.png")
    watch.until(lambda: watch.results == ["a_x2.png", "b_x2.png"])
    assert watch.stop() == 130
    assert "Traceback" not in watch.err.read_text()
    assert watch.says("2 ok in ")
    draw(tmp_path / "in" / "c.png")
    watch = start("--settle", "0.2")
    watch.until(lambda: len(watch.results) == 3)
    assert watch.stop(signal.SIGTERM) == 143
    assert watch.says("1 ok, 2 skipped in ")
    assert made(tmp_path / "out") == ["a_x2.png", "b_x2.png", "c_x2.png"]


@pytest.mark.slow
def test_many_files_at_once_are_all_done_once(
    start: Start, tmp_path: Path, make_bundle: Callable[..., Path]
) -> None:
    """Each result is flushed to the disk three times, so 1,000 take minutes on some: by the variable."""
    files = int(os.environ.get("TUDSR_WATCH_FILES", "120"))
    make_bundle(tmp_path / "tiny", tile=64)
    for number in range(files):
        draw(tmp_path / "drop" / f"{number}.png", number, side=4)
    watch = start("--settle", "0.2", "--bundle", "tiny", "--overlap", "24")
    watch.until(lambda: watch.says("watching "))
    for path in (tmp_path / "drop").iterdir():
        path.rename(tmp_path / "in" / path.name)
    watch.until(lambda: len(watch.results) >= files)
    assert watch.stop() == 130
    expected = sorted(f"{number}_x2.png" for number in range(files))
    assert sorted(watch.results) == expected
    assert made(tmp_path / "out") == expected
    assert watch.says(f"{files} ok in ")


def test_a_picture_whose_copying_pauses_is_done_in_the_end(start: Start, tmp_path: Path) -> None:
    whole = draw(tmp_path / "whole.png", side=40).read_bytes()
    watch = start("--settle", "0.2")
    watch.until(lambda: watch.says("watching "))
    with open(tmp_path / "in" / "slow.png", "wb") as file:
        file.write(whole[: len(whole) // 2])
        file.flush()
        watch.until(lambda: watch.says("error: ") and watch.says("slow.png"))
        file.write(whole[len(whole) // 2 :])
    watch.until(lambda: watch.results == ["slow_x2.png"])
    assert watch.stop() == 130


def test_a_picture_that_is_replaced_is_done_again_where_that_is_allowed(start: Start, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", 0)
    watch = start("--settle", "0.2", "--overwrite")
    watch.until(lambda: watch.results == ["a_x2.png"])
    before = (tmp_path / "out" / "a_x2.png").read_bytes()
    draw(tmp_path / "in" / "a.png", 1)
    watch.until(lambda: watch.results == ["a_x2.png"] * 2)
    assert (tmp_path / "out" / "a_x2.png").read_bytes() != before
    assert watch.stop() == 130


def test_a_bad_file_stops_nothing_and_a_folder_that_goes_does(start: Start, tmp_path: Path) -> None:
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    watch = start("--settle", "0", "--json")
    watch.until(lambda: watch.says("not a picture"))
    draw(tmp_path / "in" / "good.png")
    watch.until(lambda: '"status": "ok"' in watch.out.read_text())
    shutil.rmtree(tmp_path / "in")
    assert watch.process.wait(PATIENCE) == 3
    assert watch.says("the folder that was watched is gone")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_file_is_whole_when_it_has_not_changed_for_the_time(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "a.png"
    arrivals, source = Arrivals(2, clock), Source(path)
    path.write_bytes(b"1")
    assert not arrivals.ready([source])
    clock.now = 1.9
    path.write_bytes(b"12")
    assert not arrivals.ready([source])
    clock.now = 3.8
    assert not arrivals.ready([source]), "it changed at 1.9"
    assert arrivals.waiting
    clock.now = 3.9
    assert arrivals.ready([source]) == [source]
    clock.now = 9
    assert not arrivals.ready([source]), "once"
    assert not arrivals.waiting
    replacement = tmp_path / "b.png"
    replacement.write_bytes(b"34")
    os.utime(replacement, ns=(path.stat().st_mtime_ns,) * 2)
    replacement.replace(path)
    assert not arrivals.ready([source])
    clock.now = 11
    assert arrivals.ready([source]) == [source], "another file of the same size and time"
    path.unlink()
    assert not arrivals.ready([source])


@pytest.mark.parametrize("output", ["in", ".", "in/../in", "linked"])
def test_results_may_not_come_into_the_folder(tudsr: Tudsr, tmp_path: Path, output: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "in", target_is_directory=True)
    result = tudsr("watch", tmp_path / "in", tmp_path / output)
    assert result.code == 2
    assert "enlarged again" in result.err


def test_what_cannot_be_watched_is_refused(tudsr: Tudsr, tmp_path: Path, small_bundle: Path) -> None:
    photo = draw(tmp_path / "in" / "a.png")
    assert tudsr("watch", photo, tmp_path / "out").code == 2
    assert tudsr("watch", tmp_path / "none", tmp_path / "out").code == 2
    assert tudsr("watch", tmp_path / "in", photo, "--bundle", small_bundle).code == 2
    assert tudsr("watch", tmp_path / "in", "").code == 2
    assert tudsr("watch", tmp_path / "in", tmp_path / "out", "--bundle", "missing").code == 5


def test_where_the_system_tells_nothing_the_folder_is_looked_at(
    tudsr: Tudsr, tmp_path: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that a disk which takes nothing ends the watch."""
    draw(tmp_path / "in" / "a.png")

    def refuse(*_: object, **__: object) -> Iterator[None]:
        raise OSError(28, "OS file watch limit reached")

    monkeypatch.setattr("watchfiles.watch", refuse)
    monkeypatch.setattr(watch_command, "RESCAN_SECONDS", 0.1)
    out, wait = tmp_path / "out", Alarm.wait

    def fill_the_disk(alarm: Alarm, seconds: float) -> None:
        """When there is nothing to do for the first time."""
        if out.is_dir():
            alarm._thread.join()
            shutil.rmtree(out)
            out.write_bytes(b"no folder any more")
            draw(tmp_path / "in" / "b.png")
        wait(alarm, seconds)

    monkeypatch.setattr(Alarm, "wait", fill_the_disk)
    result = tudsr("watch", tmp_path / "in", out, "--settle", "0", "--bundle", small_bundle)
    assert result.out == f"{out / 'a_x8.png'}\n"
    assert "changes are seen every 0.1 s only" in result.err
    assert result.code == 8
