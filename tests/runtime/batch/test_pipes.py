"""Pictures through pipes, and streams that are closed, full or a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.runtime.batch.drawn import ROOT, draw, files, read_terminal, size, start
from tests.runtime.conftest import Tudsr


def test_a_reader_that_has_gone_ends_the_run_quietly(photo: Path, small_bundle: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = "import sys, cli; sys.exit(cli.main())"
    arguments = ("upscale", photo, "--bundle", small_bundle, "-q")
    with start(script, *arguments, stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize("options", [["-q"], ["-q", "--json"], ["-q", "-o", "-"]])
def test_a_stdout_that_takes_nothing_is_an_error(photo: Path, small_bundle: Path, options: list[str]) -> None:
    script = "import sys, cli; sys.exit(cli.main())"
    arguments = ("upscale", photo, "--bundle", small_bundle, *options)
    with (
        open("/dev/full", "w") as full,
        start(script, *arguments, stdout=full, stderr=subprocess.PIPE) as process,
    ):
        assert process.stderr is not None
        assert process.stderr.read() == "error: cannot write to stdout: No space left on device\n"
    assert process.returncode == 8


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("closed", "code", "said"),
    [("- <&-", 3, "empty"), ("photo.png >&-", 8, "cannot write to stdout"), ("photo.png 2>&-", 0, "")],
)
def test_streams_that_are_closed(photo: Path, small_bundle: Path, closed: str, code: int, said: str) -> None:
    command = f'"$0" "$1" upscale --bundle "$2" {closed}'
    arguments = ["sh", "-c", command, sys.executable, ROOT / "cli.py", small_bundle]
    done = subprocess.run(arguments, cwd=photo.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_progress_bar_and_stdout_stays_pure(
    photo: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pty

    controller, terminal = pty.openpty()
    # not the terminal that the tests run in
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    script = "import sys, cli; sys.exit(cli.main())"
    arguments = ("upscale", photo, "--bundle", small_bundle)
    with (
        open(photo.with_name("stdout"), "wb") as stdout,
        start(script, *arguments, stderr=terminal, stdout=stdout) as process,
    ):
        os.close(terminal)
        # While it runs: a bar that is drawn often enough would wait for a reader.
        shown = b"".join(read_terminal(controller))
    os.close(controller)
    assert process.returncode == 0
    assert photo.with_name("stdout").read_text() == f"{photo.with_name('photo_x8.png')}\n"
    assert b"/2 tiles" in shown


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="needs /dev/fd")
@pytest.mark.parametrize(
    ("command", "made"),
    [
        ("tudsr upscale <(cat photo.png) -o a.png", {"a.png"}),
        ("tudsr upscale <(cat photo.png) > a.png", {"a.png"}),
        ("tudsr upscale <(cat photo.png) photo.png -o out", {"pipe*_x8.png", "photo_x8.png"}),
        ("tudsr upscale photo.png -o /dev/stdout > a.png", {"a.png"}),
        ("tudsr upscale photo.png -o /dev/stdout | cat > a.png", {"a.png"}),
        ("tudsr upscale /dev/stdin -o a.png < photo.png", {"a.png"}),
        ("cat photo.png | tudsr upscale /dev/stdin > a.png", {"a.png"}),
    ],
)
def test_pipes_by_other_names(photo: Path, small_bundle: Path, command: str, made: set[str]) -> None:
    folder = photo.parent
    before = {*folder.rglob("*.png")}
    run = shlex.join([sys.executable, "-m", "tudsr", "upscale", "--bundle", str(small_bundle)])
    script = command.replace("tudsr upscale", run)
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {*folder.rglob("*.png")} - before
    assert {re.sub(r"\d+_", "*_", path.name) for path in found} == made
    assert {size(path) for path in found} == {(104, 72)}


def test_a_device_or_a_fifo_is_no_output(tudsr: Tudsr, photo: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.png"
    os.mkfifo(fifo)
    for target in (fifo, Path(os.devnull)):
        result = tudsr("upscale", photo, "-o", target)
        assert result.code == 2
        assert f"-o {target} is a device or a pipe" in result.err
        assert f"Try: tudsr upscale ... -o - > {target}" in result.err


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_stdin_is_called_stdin(photo: Path, small_bundle: Path, content: bytes | None) -> None:
    command = [sys.executable, "-m", "tudsr", "upscale", "-", "-o", "out.png", "--json"]
    done = subprocess.run(
        [*command, "--bundle", str(small_bundle)],
        cwd=photo.parent,
        input=content or photo.read_bytes(),
        capture_output=True,
    )
    assert done.returncode == (3 if content else 0)
    assert json.loads(done.stdout.splitlines()[0])["input"] == "stdin"
    assert b"stdin: " in done.stderr
    assert b"tudsr-" not in done.stdout + done.stderr


def test_a_picture_through_pipes(tmp_path: Path, small_bundle: Path) -> None:
    data = draw(tmp_path / "a.png").read_bytes()
    command = [sys.executable, ROOT / "cli.py", "upscale", "-", "--scale", "2", "--format", "jpg"]
    done = subprocess.run(
        [*command, "--bundle", small_bundle], cwd=tmp_path, input=data, capture_output=True, check=True
    )
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert (image.format, image.size) == ("JPEG", (26, 18))
    assert files(tmp_path) == ["a.png"]


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
    assert files(tmp_path) == ["a.png", "b.tif"]
