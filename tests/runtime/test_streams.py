"""Output streams that fail cost no picture, and no name of a file moves a terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import cli
from tests.runtime.batch.drawn import read_terminal
from tudsr_runtime.errors import TudsrError
from tudsr_runtime.streams import LenientStream, failure_of, printable, printable_lines
from tudsr_runtime.terminal import describe

ROOT = Path(cli.__file__).parent
COUNT = 6

needs_full = pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
needs_terminal = pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal of Linux")

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.\x7f"
"""Sets the title, clears the screen, colours in one byte, turns the direction of writing."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(COUNT):
        Image.new("RGB", (5, 4), (number, 2, 3)).save(tmp_path / f"{number}.png")
    return tmp_path


def made(folder: Path) -> int:
    return len(list(folder.glob("*_x8.png")))


def shell(folder: Path, bundle: Path, redirected: str) -> subprocess.CompletedProcess[str]:
    """`tudsr upscale FOLDER` with redirections, in a shell that fails where tudsr does."""
    command = f'"$0" "$1" upscale "$3" --bundle "$2" {redirected}'
    arguments = ["bash", "-o", "pipefail", "-c", command, sys.executable, ROOT / "cli.py", bundle, folder]
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)


@posix_only
@pytest.mark.parametrize(
    ("redirected", "code"),
    [
        # The stderr that fails is nobody's loss but its reader's.
        pytest.param("2>/dev/full", 0, marks=needs_full),
        pytest.param("2>&1 >/dev/null | head -c 0", 0),
        pytest.param("2>&-", 0),
        # Results that could not be told are an error, once all are made.
        pytest.param(">/dev/full", 8, marks=needs_full),
        pytest.param("--json >/dev/full", 8, marks=needs_full),
        pytest.param(">&-", 8),
        pytest.param(">&- 2>&-", 8),
        pytest.param("| head -c 0", 141),
        pytest.param("2>&1 | head -n 1", 141),
        pytest.param("--json 2>/dev/null | head -n 1", 141),
    ],
)
def test_streams_that_fail_cost_no_picture(
    folder: Path, small_bundle: Path, redirected: str, code: int
) -> None:
    done = shell(folder, small_bundle, redirected)
    assert made(folder) == COUNT
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert f"{COUNT} ok" in done.stderr or "2>" in redirected
    assert ("cannot write to stdout" in done.stderr) == (code == 8 and "2>" not in redirected)


@needs_full
def test_a_bar_that_cannot_be_drawn_costs_no_picture(folder: Path, small_bundle: Path) -> None:
    script = """
        import sys, cli
        from tudsr_runtime.streams import LenientStream
        LenientStream.isatty = lambda self: True
        sys.exit(cli.main())
    """
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), "upscale", folder, "--bundle", small_bundle],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
        )
    assert (done.returncode, made(folder)) == (0, COUNT)


@posix_only
def test_other_commands_survive_streams_that_fail(small_bundle: Path) -> None:
    for redirected, code in (("2>&-", 0), ("| head -c 0", 141), (">&-", 8)):
        command = f'"$0" "$1" bundle info "$2" {redirected}'
        arguments = ["bash", "-o", "pipefail", "-c", command, sys.executable, ROOT / "cli.py", small_bundle]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_a_lenient_stream_keeps_its_first_error() -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    below = io.TextIOWrapper(Full(), encoding="utf-8")
    stream = LenientStream(below)
    assert stream.write("text") == 4
    failure = failure_of(stream)
    assert failure is not None
    assert failure.errno == 28
    stream.detach()
    below.detach()


@needs_terminal
@pytest.mark.parametrize("streams", [("stderr",), ("stdout", "stderr")])
def test_no_name_is_obeyed_by_a_terminal(
    tmp_path: Path, small_bundle: Path, streams: tuple[str, ...]
) -> None:
    import pty

    Image.new("RGB", (5, 4)).save(tmp_path / f"{EVIL}.png")
    (tmp_path / f"bad{EVIL}.png").write_bytes(b"no picture")
    (tmp_path / f"text{EVIL}.txt").touch()
    raw = os.fsencode(tmp_path) + b"/\x9b1mraw.png"
    Image.new("RGB", (5, 4)).save(os.fsdecode(raw), "PNG")
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, ROOT / "cli.py", "upscale", tmp_path, "--bundle", small_bundle],
        env={**os.environ, "TERM": "xterm-256color"},
        **{"stdout": subprocess.DEVNULL, **dict.fromkeys(streams, terminal)},
    )
    os.close(terminal)
    shown = b"".join(read_terminal(controller))
    os.close(controller)
    assert process.wait() == 4
    assert rb"\x1b]0;owned\x07" in shown
    # The bar itself moves the cursor and colours, but nothing of what the names hold comes through.
    for sequence in (b"\x1b]0;", b"\x07", b"\x1b[2J", b"\xc2\x9b", "\u202e".encode(), b"\x7f", b"\x9b1m"):
        assert sequence not in shown


@posix_only
def test_a_path_is_exact_in_a_pipe_and_stderr_is_always_safe(tmp_path: Path, small_bundle: Path) -> None:
    source = tmp_path / f"{EVIL}\n.png"
    Image.new("RGB", (5, 4)).save(source)
    done = subprocess.run(
        [sys.executable, ROOT / "cli.py", "upscale", source, "--bundle", small_bundle],
        capture_output=True,
        check=True,
    )
    assert done.stdout == os.fsencode(source.with_stem(f"{source.stem}_x8")) + b"\n"
    assert printable_lines(done.stderr.decode()) == done.stderr.decode()
    (line,) = [line for line in done.stderr.splitlines() if b"px" in line]
    assert line.startswith(os.fsencode(tmp_path))


@posix_only
@pytest.mark.parametrize(
    "arguments", [[f"--{EVIL}"], ["--scale", EVIL], ["missing" + EVIL], ["-o", EVIL, "a.gif"]]
)
def test_what_is_said_of_a_command_line_is_safe(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, ROOT / "cli.py", "upscale", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (2, 3)
    assert done.stderr
    assert printable_lines(done.stderr) == done.stderr


@given(st.text())
def test_printable_text_is_printable_and_stays_so(text: str) -> None:
    safe = printable(text)
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in safe)
    safe.encode()
    assert printable(safe) == safe
    assert describe(TudsrError("x", hint=text)).count("\n") == (1 if text else 0)


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("photo.png", "写真 🖼 ü", "family 👨\u200d👩\u200d👧", "می\u200cخواهم", "שלום"):  # noqa: RUF001
        assert printable(name) == name
