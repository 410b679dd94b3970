"""Refuses requests before the application sees them: by who asks, how much is sent, and how slowly.

Everything here happens before a form is parsed, and nothing of a request is held in memory.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tudsr_runtime.errors import quoted
from tudsr_serve.errors import Forbidden, Full, ServeError, TooLarge, TooSlow, Unauthorized, as_response

OPEN_PATHS = ("/", "/healthz")
"""What is answered without a token: the page, which then asks for it, and whether the server lives."""

FORM_BYTES = 1 << 16
"""Bytes that a form may have besides those of its picture."""

SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Headers of every answer."""


@dataclass(frozen=True)
class Pace:
    """How slow a client may be. A body may take `grace` s and a second more for every `rate` bytes of it;
    an answer must take up something every `stall` s.
    """

    grace: float = 20
    rate: int = 16_000
    stall: float = 60
    linger: float = 2
    """Seconds that are spent on reading what a refused client still sends, so that it reads why."""


@dataclass(frozen=True)
class Rules:
    """Who may ask. `hosts` are names, None for any; `origins` those of CORS; `token` None for everybody.

    `max_bytes` are those of one file, `max_uploading_bytes` those of all requests that are being read.
    """

    token: str | None = None
    hosts: Collection[str] | None = None
    origins: Collection[str] = ()
    max_bytes: int = 64 << 20
    max_uploading_bytes: int = 1 << 30
    pace: Pace = Pace()

    def check(self, scope: Scope) -> None:
        """Raise ServeError for a request that is to be refused by its header."""
        headers = Headers(scope=scope)
        self._check_host(headers.get("host", ""))
        self._check_origin(headers)
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.max_bytes + FORM_BYTES:
            raise too_large(self.max_bytes)
        if scope["path"] not in OPEN_PATHS and scope["method"] != "OPTIONS":
            self._check_token(headers.get("authorization", ""))

    def _check_host(self, host: str) -> None:
        # A name of someone else's that leads to this machine would let his pages read the answers.
        name = (urlsplit(f"//{host}").hostname or "") if _is_host(host) else ""
        if self.hosts is not None and name not in self.hosts:
            raise Forbidden(f"this server is not {quoted(host)}", hint="--allow-host, where it is started")

    def _check_origin(self, headers: Headers) -> None:
        # Any page may send a form to any server; only what it reads is kept from it.
        origin = headers.get("origin")
        if origin is None or origin in self.origins:
            return
        if origin.partition("://")[2] != headers.get("host"):
            raise Forbidden(
                f"pages of {quoted(origin)} may not ask", hint="--allow-origin, where it is started"
            )

    def _check_token(self, authorization: str) -> None:
        if self.token is None:
            return
        kind, _, given = authorization.partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            raise Unauthorized("a token is needed", hint="Authorization: Bearer TOKEN")


def _is_host(host: str) -> bool:
    try:
        urlsplit(f"//{host}").hostname  # noqa: B018 - raises
    except ValueError:
        return False
    return True


def too_large(limit: int) -> TooLarge:
    """The error of a body that is larger than a picture may be."""
    return TooLarge(f"the file is larger than {limit / 1e6:g} MB", hint="a smaller file")


class Guard:
    """ASGI middleware that applies `rules` to every request of `app`.

    Args:
        counted: told method, route (as it was declared, so without ids) and status of each answer.
        bug: told of each exception that is no TudsrError.
    """

    def __init__(
        self,
        app: ASGIApp,
        rules: Rules,
        counted: Callable[[str, str, int], None] = lambda *_: None,
        bug: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self._app, self._rules, self._counted, self._bug = app, rules, counted, bug
        self._uploading = Uploading(rules.max_uploading_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        expects = Headers(scope=scope).get("expect") is not None
        exchange = _Exchange(self._rules, self._uploading, receive, send, expects)
        try:
            self._rules.check(scope)
        except ServeError as error:
            await as_response(error)(scope, exchange.receive, exchange.send)
        else:
            await self._answered(scope, exchange)
        finally:
            exchange.end()
        self._counted(scope["method"], getattr(scope.get("route"), "path", "none"), exchange.status)

    async def _answered(self, scope: Scope, exchange: _Exchange) -> None:
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except _Stalled:
            pass
        except Exception as error:  # its answer has been sent
            self._bug(error)


@dataclass
class Uploading:
    """Bytes of the requests that are being read, and how many they may be."""

    most: int
    bytes: int = 0

    def add(self, count: int) -> None:
        """Count bytes that came. Raises Full where that makes too many."""
        self.bytes += count
        if self.bytes > self.most:
            raise Full(f"{self.most / 1e6:g} MB are being received already", hint="later", retry_after=10)


class _Stalled(Exception):  # noqa: N818 - no error, a way to unwind
    """The client takes nothing of its answer."""


@dataclass
class _Exchange:
    """One request and its answer, under the rules."""

    rules: Rules
    uploading: Uploading
    _receive: Receive
    _send: Send
    expects: bool
    status: int = 0
    _bytes: int = 0
    _whole: bool = False
    _began: float = field(default_factory=time.monotonic)

    async def receive(self) -> Message:
        """Receive a piece of the body. Raises TooLarge, TooSlow, Full."""
        if self._whole:
            return await self._receive()
        pace = self.rules.pace
        until = self._began + pace.grace + self._bytes / pace.rate
        try:
            message = await asyncio.wait_for(self._receive(), until - time.monotonic())
        except TimeoutError:
            raise TooSlow(
                f"only {self._bytes} bytes came in {time.monotonic() - self._began:.0f} s"
            ) from None
        length = len(message.get("body", b""))
        self._bytes += length
        self.uploading.add(length)
        self._whole = message["type"] == "http.disconnect" or not message.get("more_body", False)
        if self._bytes > self.rules.max_bytes + FORM_BYTES:
            raise too_large(self.rules.max_bytes)
        return message

    def end(self) -> None:
        """Forget the request once it is over."""
        self.uploading.bytes -= self._bytes

    async def send(self, message: Message) -> None:
        """Send a piece of the answer; that which ends a refusal waits until the client has sent all."""
        if message["type"] == "http.response.start":
            message = self._with_headers(message)
        elif self.status >= 400 and not self._whole and not message.get("more_body", False):
            await self._pass_on({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._pass_on(message)

    def _with_headers(self, message: Message) -> Message:
        self.status = message["status"]
        headers = MutableHeaders(raw=list(message["headers"]))
        for name, value in SECURITY.items():
            headers.setdefault(name, value)
        if self.status >= 400 and not self._whole:
            headers["Connection"] = "close"
        return {**message, "headers": headers.raw}

    async def _linger(self) -> None:
        # Who waits to be told to go on sends nothing.
        if self.expects and not self._bytes:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self.rules.pace.linger):
                while not self._whole:
                    message = await self._receive()
                    self._whole = message["type"] == "http.disconnect" or not message.get("more_body", False)

    async def _pass_on(self, message: Message) -> None:
        try:
            await asyncio.wait_for(self._send(message), self.rules.pace.stall)
        except TimeoutError:
            raise _Stalled from None
