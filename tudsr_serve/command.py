"""`tudsr serve` and `tudsr app`: the service on a port, until it is stopped."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from tudsr_runtime.batch.job import outline
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.calls import ended_by_others
from tudsr_runtime.engines.choose import build_missing
from tudsr_runtime.errors import UsageError
from tudsr_runtime.terminal import Terminal
from tudsr_runtime.upscaler import Upscaler
from tudsr_serve.guard import Rules
from tudsr_serve.intake import Limits
from tudsr_serve.jobs import Job
from tudsr_serve.options import ServeOptions
from tudsr_serve.protocol import MAX_HEADER_BYTES, PatientProtocol
from tudsr_serve.service import Settings, make_app

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_CONNECTIONS = 400
"""Connections beyond that are answered with 503."""
PICTURE = Path("a picture")
"""What stands for the picture in the line below a bug's traceback: its name is the client's own."""
STOP_SECONDS = 5
"""What requests under way have to end in when the server is stopped."""


def serve(options: ServeOptions, browser: bool = False) -> None:
    """Answer requests until a signal comes.

    Args:
        browser: open the page.

    Raises:
        UsageError: the port cannot be had, or an option is invalid. And as `Upscaler`.
    """
    terminal = Terminal(options.quiet)
    settings = _settings(options)
    with ExitStack() as held:
        listening = held.enter_context(listen(options.host, options.port))
        upscalers = {
            name: held.enter_context(_upscaler(bundle, options, terminal))
            for name, bundle in _bundles(options.bundle or ("nano",), terminal).items()
        }
        address = _address(options.host, listening)
        if settings.rules.token is None and not is_local(options.host):
            terminal.remark(f"whoever reaches {address} may use it; --token-file FILE asks for a token")
        app = make_app(
            upscalers, settings, lambda job: _report(job, terminal), partial(terminal.error, path=PICTURE)
        )
        server = _Server(uvicorn_config(app), address, terminal, browser)
        # Its own way to end gives those who wait some time.
        with ended_by_others():
            server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """A server that prints its address once it answers."""

    def __init__(self, config: uvicorn.Config, address: str, terminal: Terminal, browser: bool) -> None:
        super().__init__(config)
        self._address, self._terminal, self._browser = address, terminal, browser

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        if self.should_exit:
            return
        self._terminal.result(self._address)
        if self._browser:
            # A browser of text takes the terminal until it ends.
            threading.Thread(target=webbrowser.open, args=(self._address,), daemon=True).start()


def uvicorn_config(app: Any) -> uvicorn.Config:
    """How uvicorn runs the application: HTTP/1.1 alone, silent, with an end to all that waits."""
    # uvicorn warns of every client that breaks off, which is no fault; tracebacks of our own are still shown.
    for name in ("uvicorn", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=STOP_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )


def _settings(options: ServeOptions) -> Settings:
    local = is_local(options.host)
    rules = Rules(
        token=_token(options.token_file),
        hosts={*options.allow_host, *LOOPBACK, options.host} if local or options.allow_host else None,
        origins=options.allow_origin,
        max_bytes=options.max_upload_megabytes * 1_000_000,
        max_uploading_bytes=options.max_disk_megabytes * 1_000_000,
    )
    limits = Limits(
        max_upload_bytes=rules.max_bytes,
        max_input_megapixels=options.max_input_megapixels,
        max_output_megapixels=options.max_output_megapixels,
        deadline=options.deadline,
        max_disk_bytes=options.max_disk_megabytes * 1_000_000,
    )
    return Settings(rules, limits, options.queue, options.keep)


def is_local(host: str) -> bool:
    """Whether only programs of this machine reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token(file: Path | None) -> str | None:
    """The token that clients must send; None for everybody. Raises UsageError for one that is none."""
    if file is None:
        given, where = os.environ.get("TUDSR_TOKEN"), "TUDSR_TOKEN"
    else:
        where = str(file)
        try:
            given = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"the token file {file} cannot be read: {said}") from error
    if given is not None and not (given.isascii() and given.isprintable() and len(given) >= 16):
        hint = "python3 -c 'import secrets; print(secrets.token_urlsafe(24))'"
        raise UsageError(f"the token of {where} must be of 16 letters of ASCII or more", hint=hint)
    return given


def _bundles(names: Sequence[str], terminal: Terminal) -> dict[str, Bundle]:
    """The bundles by the names that clients know them by, which are never paths."""
    found: dict[str, Bundle] = {}
    for given in names:
        name = Path(given).resolve().name if os.sep in given else Path(given).name
        if name in found:
            raise UsageError(f"two bundles would be called {name!r}", hint="rename one's folder")
        found[name] = open_bundle(given, notify=terminal.remark)
    return found


def _upscaler(bundle: Bundle, options: ServeOptions, terminal: Terminal) -> Upscaler:
    made = Upscaler(
        bundle,
        backend=options.backend,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        engines=options.engines,
        decoder=options.decoder,
        notify=terminal.remark,
    )
    terminal.note(made.choice.in_short(made.bundle.title))
    # All sizes of tiles: who knows what will be asked for.
    build_missing(made.bundle, made.choice, made.bundle.places, terminal)
    return made


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at that address; port 0 is any that is free. Raises UsageError if it cannot be had."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}: {error.strerror or error}", hint="--host 127.0.0.1"
        ) from error
    with made:
        try:
            if sys.platform != "win32":  # where it means something else
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError as error:
            said = f"cannot listen on {host}, port {port}: {error.strerror or error}"
            raise UsageError(said, hint="--port 0, for any that is free") from error
        yield made


def _address(host: str, listening: socket.socket) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{listening.getsockname()[1]}/"


def _report(job: Job, terminal: Terminal) -> None:
    """A line for whoever watches; of a bug, its traceback."""
    if isinstance(job.error, Exception) and job.state == "failed":
        terminal.error(job.error, PICTURE)
        return
    seconds = f", {job.seconds:.1f} s" if job.seconds is not None else ""
    terminal.note(f"{job.state}: {outline(job.planned.plan)}{seconds}")
