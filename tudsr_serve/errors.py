"""Errors as answers: the status of each, and the JSON that says it.

    {"error": {"type": "InputError", "message": "...", "hint": "...", "exit_code": 3, "status": 422}}

`exit_code` is the command's where the command has that error too, else null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.responses import JSONResponse

from tudsr_runtime.errors import (
    BundleError,
    DeviceError,
    InputError,
    MemoryExhausted,
    NotFiniteError,
    OutputError,
    TudsrError,
    UsageError,
)

STATUSES: Mapping[type[TudsrError], int] = {
    UsageError: 400,
    InputError: 422,
    BundleError: 500,
    DeviceError: 500,
    MemoryExhausted: 503,
    OutputError: 507,
    NotFiniteError: 500,
}


class ServeError(TudsrError):
    """What only a server says; `status` is that of HTTP, `retry_after` in seconds."""

    status = 500

    def __init__(self, message: str, *, hint: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class Unauthorized(ServeError):  # noqa: N818 - HTTP's own word
    """No token, or a wrong one."""

    status = 401


class Forbidden(ServeError):  # noqa: N818
    """A page of another origin asked, or the request named a host that this server is not."""

    status = 403


class NotHere(ServeError):  # noqa: N818
    """No such job, or no such place."""

    status = 404


class TooSlow(ServeError):  # noqa: N818
    """The client sends more slowly than a server can wait."""

    status = 408


class NotYet(ServeError):  # noqa: N818
    """The result was asked for before the job is done."""

    status = 409


class Cancelled(ServeError):  # noqa: N818
    """Nobody wants the picture any more."""

    status = 410


class TooLarge(ServeError):  # noqa: N818
    """The upload has more bytes or pixels than the limits allow."""

    status = 413


class Busy(ServeError):  # noqa: N818
    """The queue is full."""

    status = 429


class Full(ServeError):  # noqa: N818
    """No room for more files, or the server is stopping."""

    status = 503


class DeadlinePassed(ServeError):  # noqa: N818
    """The picture took too long."""

    status = 504


def status_of(error: BaseException) -> int:
    """The HTTP status that stands for an error; 500 for a bug."""
    if isinstance(error, ServeError):
        return error.status
    return next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 500)


def as_answer(error: BaseException) -> dict[str, object]:
    """The JSON of an error. Of a bug nothing is told that the client did not send."""
    if not isinstance(error, TudsrError):
        said = "this is a bug of tudsr; the server's own output says more"
        return {"error": {"type": "Bug", "message": said, "hint": None, "exit_code": 1, "status": 500}}
    return {
        "error": {
            "type": type(error).__name__,
            "message": str(error),
            "hint": None if error.hint is None else in_fields(error.hint),
            "exit_code": None if isinstance(error, ServeError) else error.exit_code,
            "status": status_of(error),
        }
    }


def as_response(error: BaseException) -> JSONResponse:
    """The answer to a request that an error has ended."""
    return JSONResponse(as_answer(error), status_of(error), _headers(error))


def _headers(error: BaseException) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    after = getattr(error, "retry_after", None)
    return {} if after is None else {"Retry-After": str(after)}


def in_fields(hint: str) -> str:
    """A hint in the words of the form: `--scale 2` is scale=2, `-o NAME.png` is format=png."""
    hint = re.sub(r"-o \S*\.(\w+)", r"format=\1", hint)
    return re.sub(r"--([a-z][a-z-]*) ([\w.,]+)", lambda found: f"{_field(found[1])}={found[2]}", hint)


def _field(option: str) -> str:
    return option.replace("-", "_")


def renamed(error: TudsrError, names: Mapping[str, str]) -> TudsrError:
    """The same error with the client's name of a file in the place of the server's."""
    message, hint = str(error), error.hint
    for path, name in names.items():
        message = message.replace(path, name)
        hint = None if hint is None else hint.replace(path, name)
    return type(error)(message, hint=hint)
