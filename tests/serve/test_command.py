"""`tudsr serve` as a process: what it says, how it ends, and that its memory does not grow."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.serve import memory, server, thirds
from tests.serve.running import form, head, make_bundle, png
from tudsr_runtime.errors import UsageError
from tudsr_serve.command import serve
from tudsr_serve.options import ServeOptions

TUDSR = Path(sys.executable).with_name("tudsr")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("command") / "mine")


@pytest.mark.thorough
@pytest.mark.slow
def test_memory_does_not_grow_with_requests(bundle: Path) -> None:
    with server(str(bundle), "--threads", "1", "--keep", "1") as (client, process):
        _, before, after = thirds(memory(client, process, 64))
        client.until("tudsr_disk_bytes", 0)
    # A leak of the pictures of a quarter of the 21 requests between them would be 23 MB in float32.
    assert after < before + 10


def test_a_port_that_is_taken_is_one_line(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1, port {port}: ") as refused:
            serve(ServeOptions(port=port, bundle=(str(bundle),)))
    assert refused.value.hint == "--port 0, for any that is free"
    with pytest.raises(UsageError, match=r"cannot listen on 203\.0\.113\.1"):
        serve(ServeOptions(host="203.0.113.1", port=0, bundle=(str(bundle),)))


def test_a_token_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("short\n")
    for file in (tmp_path / "token", tmp_path / "absent"):
        with pytest.raises(UsageError, match="token"):
            serve(ServeOptions(port=0, token_file=file))
    monkeypatch.setenv("TUDSR_TOKEN", "short")
    with pytest.raises(UsageError, match="TUDSR_TOKEN must be of 16 letters"):
        serve(ServeOptions(port=0))


def test_bundles_are_asked_for_by_names_that_differ(bundle: Path) -> None:
    with pytest.raises(UsageError, match="two bundles would be called 'mine'"):
        serve(ServeOptions(port=0, bundle=(str(bundle), str(bundle))))


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_pictures_under_way_and_leaves_nothing(
    bundle: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = [TUDSR, "serve", "--port", "0", "--bundle", bundle]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().strip().rstrip("/").rpartition(":")[2])
        body, kind = form(png(1000, 1000))
        with socket.create_connection(("127.0.0.1", port)) as waiting:
            waiting.sendall(head(kind, len(body)) + body)
            while not any(tmp_path.glob("*/*/.tudsr-*")):  # the result has begun
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(number)
            said = process.communicate()
    assert process.returncode == code, said
    assert "Traceback" not in said[1]
    assert list(tmp_path.iterdir()) == []
