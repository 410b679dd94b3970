"""A run that is interrupted or killed leaves nothing half written."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.runtime.batch.drawn import draw, files, start, until_ready

SLOW_MODEL = """
    import sys, time, cli
    from tudsr_runtime.upscaler import Upscaler
    def upscale_rows(self, image, *_, **__):
        print("ready", file=sys.stderr, flush=True)
        time.sleep(60)
    Upscaler.upscale_rows = upscale_rows
    sys.exit(cli.main())
"""


SLOW_DISK = """
    import sys, time, cli
    from tudsr_runtime.pictures.png import PngWriter
    def finish(self):
        self._file.flush()
        print("ready", file=sys.stderr, flush=True)
        time.sleep(60)
    PngWriter.finish = finish
    sys.exit(cli.main())
"""


@pytest.mark.parametrize("script", [SLOW_MODEL, SLOW_DISK])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_and_leaves_nothing_half_written(
    photo: Path, small_bundle: Path, script: str, number: signal.Signals, code: int
) -> None:
    arguments = ("upscale", photo, "--bundle", small_bundle, "-q")
    with start(script, *arguments, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(number)
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == code
    assert files(photo.parent) == ["photo.png"]


def test_a_stopped_folder_says_how_far_it_came(photo: Path, small_bundle: Path) -> None:
    draw(photo.with_name("second.png"))
    with start(
        SLOW_MODEL, "upscale", photo.parent, "--bundle", small_bundle, stderr=subprocess.PIPE
    ) as process:
        until_ready(process)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.read().endswith(
            "stopped, 0 of 2 done; the same command goes on with the others\n"
        )


def test_a_stopped_watch_does_not_say_that_there_was_nothing_to_do(photo: Path, small_bundle: Path) -> None:
    pytest.importorskip("watchfiles", reason="needs watchfiles, the extra [watch]")
    folder, out = photo.parent, photo.parent / "out"
    arguments = ("watch", folder, out, "--settle", "0", "--bundle", small_bundle)
    with start(SLOW_MODEL, *arguments, stderr=subprocess.PIPE) as process:
        until_ready(process)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        *_, stopped, summary = process.stderr.read().splitlines()
    assert stopped == "stopped, 0 of 1 done; the same command goes on with the others"
    assert summary.startswith("nothing done in ")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_being_killed_while_writing_leaves_the_old_output(photo: Path, small_bundle: Path) -> None:
    target = photo.with_name("photo_x8.png")
    target.write_bytes(b"the old one")
    arguments = ("upscale", photo, "--bundle", small_bundle, "-q", "--overwrite")
    with start(SLOW_DISK, *arguments, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.kill()
    assert target.read_bytes() == b"the old one"
    visible = [name for name in files(photo.parent) if not name.startswith(".")]
    assert visible == ["photo.png", "photo_x8.png"]
