"""A server that really runs, in a thread on a port of its own, and a client of a few lines."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runtime.conftest import write_bundle
from tudsr_runtime import Upscaler
from tudsr_runtime.errors import TudsrError

for needed in ("fastapi", "multipart"):
    pytest.importorskip(needed, reason="needs the [serve] extra: fastapi, uvicorn, python-multipart")
uvicorn = pytest.importorskip("uvicorn", reason="needs the [serve] extra: fastapi, uvicorn, python-multipart")
pytest.importorskip("onnx", reason="building the test's bundle needs onnx")
pytest.importorskip("onnxruntime", reason="running it needs onnxruntime")

PATIENCE = 120
"""Seconds after which a test fails rather than waits; no test depends on it otherwise."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]

    @property
    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(self.body))


@dataclass(frozen=True)
class Client:
    """Asks one server; each request on a connection of its own."""

    port: int
    bugs: list[BaseException] = field(default_factory=list, compare=False)
    """What the server reported."""

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, dict(headers))
            found = connection.getresponse()
            return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, picture: bytes, name: str = "photo.png", **fields: object) -> Answer:
        body, kind = form(picture, name, **fields)
        return self.ask("POST", path, body, {"Content-Type": kind})

    def events(self, job: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """What a job's stream says until it ends."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", f"/jobs/{job}/events")
        found = connection.getresponse()
        assert found.getheader("content-type", "").startswith("text/event-stream")
        event = ""
        with contextlib.closing(connection), found:
            for line in map(bytes.decode, found):
                if line.startswith("event: "):
                    event = line[7:].strip()
                elif line.startswith("data: "):
                    yield event, json.loads(line[6:])

    def connected(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def figure(self, name: str) -> float:
        """One figure of /metrics."""
        lines = self.get("/metrics").body.decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).rpartition(" ")[2])

    def until(self, name: str, value: float) -> None:
        """Wait for a figure of /metrics."""
        wait_until(lambda: self.figure(name) == value, f"{name} {value}")


def wait_until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def form(picture: bytes, name: str = "photo.png", **fields: object) -> tuple[bytes, str]:
    """A multipart body and its content type."""
    mark = secrets.token_hex(12)
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()
    ]
    head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = "".join(parts).encode() + head.encode() + picture + f"\r\n--{mark}--\r\n".encode()
    return body, f"multipart/form-data; boundary={mark}"


def head(kind: str, length: int, path: str = "/upscale", more: str = "") -> bytes:
    """The header of a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {kind}", f"Content-Length: {length}"]
    return ("\r\n".join([*lines, *filter(None, [more])]) + "\r\n\r\n").encode()


def png(width: int = 40, height: int = 30, mode: str = "RGB", kind: str = "PNG") -> bytes:
    channels = len(mode) if len(mode) > 1 else 0
    shape = (height, width, channels) if channels else (height, width)
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).save(file, kind)
    return file.getvalue()


def make_bundle(folder: Path) -> Path:
    """A bundle that enlarges bilinearly, in no time."""
    folder.mkdir(parents=True)
    return write_bundle(folder, tile=256)


class Held(Upscaler):
    """Waits before each tile while `gate` is closed."""

    gate: threading.Event

    def upscale_rows(self, image: Any, *args: Any, **options: Any) -> Any:
        scale, factors, progress = args

        def held(done: int, total: int) -> None:
            while not self.gate.wait(0.01):
                progress(done, total)
            progress(done, total)

        return super().upscale_rows(image, scale, factors, held, **options)


@contextmanager
def serving(upscalers: Mapping[str, Upscaler], settings: Any) -> Iterator[Client]:
    """The service on a free port, in a thread."""
    from tudsr_serve.command import listen, uvicorn_config
    from tudsr_serve.service import make_app

    bugs: list[BaseException] = []

    def ended(job: Any) -> None:
        if job.error is not None and not isinstance(job.error, TudsrError):
            bugs.append(job.error)

    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn_config(make_app(upscalers, settings, ended, bugs.append)))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        wait_until(lambda: server.started, "the server starts")
        try:
            yield Client(listening.getsockname()[1], bugs)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()
