"""HTTP/1.1 as uvicorn speaks it with h11, and an end to connections that never send a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 20.0
"""From a connection, or from the answer before, until the header of a request is there."""

MAX_HEADER_BYTES = 32 << 10


class PatientProtocol(H11Protocol):
    """Closes a connection on which no request is under way `HEADER_SECONDS` after the last, or the start.

    uvicorn waits for ever for the first request of a connection, and for a header that has begun.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.abort()
