"""Clients that mean harm, or do not know better, against a server that runs: it goes on for the others."""

from __future__ import annotations

import contextlib
import io
import os
import random
import select
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.serve.running import Client, Held, form, head, make_bundle, png, serving, wait_until
from tudsr_runtime import Upscaler
from tudsr_serve import protocol
from tudsr_serve.guard import Pace, Rules
from tudsr_serve.service import Settings

PACE = Pace(grace=1, rate=100_000, stall=1, linger=0.5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("hostile") / "mine")


def server(bundle: Path, **rules: Any) -> Iterator[Client]:
    with (
        Upscaler(bundle, "onnxruntime", "cpu", threads=1) as upscaler,
        serving({"mine": upscaler}, Settings(Rules(max_bytes=2_000_000, **rules))) as one,
    ):
        yield one


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[Client]:
    """A server with the usual patience."""
    yield from server(bundle)


@pytest.fixture(scope="module")
def hasty(bundle: Path) -> Iterator[Client]:
    """A server with so little patience that on a busy machine an honest client may be too slow for it."""
    yield from server(bundle, pace=PACE)


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that do not ask are soon closed."""
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 2.0)


@pytest.fixture(autouse=True)
def still_serves(client: Client) -> Iterator[None]:
    """Whatever was done, the next client gets his picture, and nothing is left."""
    yield
    assert_serves(client)


def assert_serves(client: Client) -> None:
    assert client.get("/healthz").status == 200
    assert client.post("/upscale", png(16, 16), scale=2).image.size == (32, 32)
    client.until("tudsr_disk_bytes", 0)
    client.until("tudsr_waiting", 0)
    assert client.bugs == []


def closed(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
    return received


@pytest.mark.usefixtures("short_wait")
def test_connections_that_never_ask_are_closed(client: Client) -> None:
    asked = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT"
    with contextlib.ExitStack() as held:
        waiting = [held.enter_context(client.connected()) for _ in range(3)]
        for one, beginning in zip(waiting, (b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-A: ", asked), strict=True):
            one.sendall(beginning)
        received = [closed(one) for one in waiting]
    assert received[:2] == [b"", b""]
    assert received[2].startswith(b"HTTP/1.1 200")


@pytest.mark.usefixtures("short_wait")
def test_a_header_that_comes_letter_by_letter_is_not_waited_for(client: Client) -> None:
    with client.connected() as slow, contextlib.suppress(ConnectionError):
        slow.sendall(b"GET / HTTP/1.1\r\n")
        for number in range(10_000):
            slow.sendall(f"X-{number}: a\r\n".encode())
            time.sleep(0.05)
        pytest.fail("the server listens for ever")


def test_a_body_that_comes_too_slowly_is_refused(hasty: Client) -> None:
    body, kind = form(png())
    with hasty.connected() as slow:
        slow.sendall(head(kind, len(body)) + body[:100])
        answer = closed(slow)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"TooSlow" in answer
    hasty.until("tudsr_disk_bytes", 0)
    assert hasty.bugs == []


def test_200_connections_that_do_nothing_or_send_slowly_leave_room_for_others(client: Client) -> None:
    body, kind = form(png())
    with contextlib.ExitStack() as held:
        for number in range(200):
            one = held.enter_context(client.connected())
            one.sendall(head(kind, len(body)) + body[:50] if number % 2 else b"GET")
        answer = client.post("/upscale", png(16, 16), scale=2)
    assert answer.status == 200


def test_uploads_that_break_off_leave_nothing(client: Client) -> None:
    before = files_open()
    body, kind = form(png(400, 300))
    for number in range(40):
        with client.connected() as leaving:
            leaving.sendall(head(kind, len(body)) + body[: len(body) * number // 40])
            if number % 2:
                reset(leaving)
    wait_until(lambda: files_open() <= before + 2, "files are closed")


def files_open() -> int:
    return psutil.Process().num_fds() if hasattr(psutil.Process, "num_fds") else 0


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_who_does_not_take_his_picture_is_left(hasty: Client) -> None:
    body, kind = form(png(100, 100), scale=16, format="bmp")
    with hasty.connected() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(head(kind, len(body)) + body)
        wait_until(lambda: hasty.figure('tudsr_jobs_total{state="done"}') >= 1, "it was made")
        hasty.until("tudsr_disk_bytes", 0)  # sent or given up: nobody waits for ever
    assert hasty.bugs == []


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 20_000 + b"\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"POST /upscale HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", b"400"),
        (b"POST /upscale HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999\r\n\r\n", b"413"),
        (b"POST /upscale HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", b"400"),
        (b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"404"),
        (b"GET /jobs/..%2f..%2fetc%2fpasswd/result HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"404"),
        (b"BREW / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"405"),
    ],
    ids=range(11),
)
def test_a_request_that_is_none_is_refused(client: Client, request_text: bytes, status: bytes) -> None:
    with client.connected() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(request_text)
        answer = closed(connection)
        assert answer[9:12] in (status, b""), answer[:200]
        assert b"root:" not in answer


def test_a_body_without_an_end_is_stopped_at_the_limit(client: Client) -> None:
    body, kind = form(b"x" * 100)
    start = head(kind, 0, more="Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    sent = 0
    with client.connected() as endless:
        endless.sendall(start + b"%x\r\n" % (len(body) - 60) + body[:-60] + b"\r\n")
        with contextlib.suppress(ConnectionError):
            # How much fits into the system's buffers until the answer is there depends on the machine.
            while sent < 4_000_000_000 and not select.select([endless], [], [], 0)[0]:
                endless.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
                sent += 65536
        assert sent < 4_000_000_000


def test_all_uploads_together_have_a_limit(bundle: Path) -> None:
    rules = Rules(max_bytes=2_000_000, max_uploading_bytes=1_000_000)
    with (
        Upscaler(bundle, "onnxruntime", "cpu", threads=1) as upscaler,
        serving({"mine": upscaler}, Settings(rules)) as client,
        contextlib.ExitStack() as held,
    ):
        body, kind = form(bytes(1_500_000))
        for _ in range(4):
            held.enter_context(client.connected()).sendall(head(kind, len(body)) + body[:240_000])
        wait_until(lambda: client.post("/upscale", bytes(300_000)).status == 503, "it is full")
        held.close()
        wait_until(lambda: client.post("/upscale", png()).status == 200, "there is room again")


def test_a_form_of_many_or_long_fields_is_refused(client: Client) -> None:
    assert client.post("/upscale", png(), **{f"f{n}": n for n in range(1000)}).status == 400
    assert client.post("/upscale", png(), scale="1" * 100_000).status == 400
    body, kind = form(png(), "n" * 100_000)
    assert client.ask("POST", "/upscale", body, {"Content-Type": kind}).status == 400
    kind = "multipart/form-data; boundary=" + "b" * 20_000
    assert client.ask("POST", "/upscale", body, {"Content-Type": kind}).status == 400


def bombs() -> dict[str, bytes]:
    """Small files that would be large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def png_of(width: int, height: int, *more: bytes) -> bytes:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IEND", b"")

    zeros = zlib.compress(bytes(100_000_000), 9)
    bmp = io.BytesIO()
    Image.new("1", (8, 8)).save(bmp, "BMP")
    huge_bmp = bytearray(bmp.getvalue())
    huge_bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    gif = io.BytesIO()
    Image.new("P", (50_000, 10)).save(gif, "GIF")
    tiff = io.BytesIO()
    Image.new("L", (9000, 9000)).save(tiff, "TIFF", compression="tiff_deflate")
    return {
        "pixels": png_of(40_000, 40_000, chunk(b"IDAT", zeros)),
        "profile": png_of(8, 8, chunk(b"iCCP", b"a\0\0" + zeros), chunk(b"IDAT", zlib.compress(bytes(200)))),
        "text": png_of(
            8, 8, *[chunk(b"zTXt", b"a\0\0" + zeros)] * 8, chunk(b"IDAT", zlib.compress(bytes(200)))
        ),
        "pixels of another size": png_of(8, 8, chunk(b"IDAT", zeros)),
        "bmp": bytes(huge_bmp),
        "gif": gif.getvalue(),
        "tiff": tiff.getvalue(),
    }


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_takes_no_memory(client: Client, name: str) -> None:
    bomb = bombs()[name]
    client.post("/upscale", png(16, 16), scale=2)
    process = psutil.Process()
    before, most = process.memory_info().rss, 0
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.005):
            most = max(most, process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        answer = client.post("/upscale", bomb, scale=1, format="png")
    finally:
        over.set()
        watching.join()
    # Decoded, the least of them would be 80 MB, the greatest 4.8 GB.
    assert most - before < 300e6, (most - before) / 1e6
    assert answer.status in (200, 413, 422), answer.body


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), cuts=st.integers(0, 6))
def test_a_damaged_request_has_an_answer_and_no_bug(client: Client, seed: int, cuts: int) -> None:
    generator = random.Random(seed)
    body, kind = form(png(8, 8), scale=2)
    damaged = bytearray(head(kind, len(body)) + body)
    for _ in range(cuts):
        place = generator.randrange(len(damaged))
        damaged[place : place + generator.randrange(4)] = generator.randbytes(generator.randrange(4))
    with client.connected() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(damaged)
        connection.shutdown(socket.SHUT_WR)
        assert b" 500 " not in closed(connection)[:20]


@pytest.mark.usefixtures("still_serves")
def test_many_at_once_all_have_an_answer(bundle: Path) -> None:
    Held.gate = threading.Event()
    with (
        Held(bundle, "onnxruntime", "cpu", threads=1) as upscaler,
        serving({"mine": upscaler}, Settings(queue=3)) as client,
    ):
        found: list[int] = []

        def ask() -> None:
            found.append(client.post("/upscale", png(16, 16), scale=2).status)

        threads = [threading.Thread(target=ask) for _ in range(30)]
        # As long as the first waits too, there is a place less.
        threads[0].start()
        client.until("tudsr_running", 1)
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: len(found) >= 26, "those for whom there is no place are told")
        Held.gate.set()
        for thread in threads:
            thread.join()
    assert sorted(found) == [200] * 4 + [429] * 26


def test_a_result_that_is_removed_while_it_is_asked_for_is_whole_or_not_there(client: Client) -> None:
    found: list[tuple[str, int, int, str]] = []
    for round_ in range(6):
        job = client.post("/jobs", png(40, 30), format="tif").json["id"]
        list(client.events(job))

        def ask(path: str, job: str = job) -> None:
            answer = client.get(f"/jobs/{job}/{path}")
            length = answer.headers["content-length"]
            found.append((path, answer.status, len(answer.body), length))

        asking = [threading.Thread(target=ask, args=(path,)) for path in ("result", "preview/after") * 3]
        asking.insert(round_, threading.Thread(target=client.ask, args=("DELETE", f"/jobs/{job}")))
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    assert len(found) == 36
    assert all(status in (200, 404) and body == int(length) for _, status, body, length in found)


def test_who_sends_nonsense_fills_no_log(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (b"nonsense", b"--x\r\nA\x00B: c\r\n\r\n"):
        assert client.ask("POST", "/upscale", body, kind).status == 400
    assert caplog.records == []


def test_files_of_the_machine_are_not_to_be_had(client: Client) -> None:
    for path in (
        "/tudsr_serve/page.html",
        "/static/",
        "/jobs/",
        "/docs",
        "/redoc",
        f"/jobs/{os.getpid()}/result",
    ):
        assert client.get(path).status in (404, 405), path
