"""The application: routes behind the guard, and what lives as long as it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from tudsr_runtime.errors import TudsrError, quoted
from tudsr_runtime.upscaler import Upscaler
from tudsr_runtime.version import __version__
from tudsr_serve.errors import as_response
from tudsr_serve.figures import Figures
from tudsr_serve.guard import Guard, Rules
from tudsr_serve.intake import Intake, Limits
from tudsr_serve.jobs import Job, Jobs, private_folder
from tudsr_serve.page import Page
from tudsr_serve.routes import Service, router
from tudsr_serve.worker import Worker

SWEEP_SECONDS = 2.0

SUMMARY = "Enlarge pictures. Errors are JSON, with the exit codes of the command."


@dataclass(frozen=True)
class Settings:
    """The settings of a service: `queue` jobs may wait; results are kept for `keep` s."""

    rules: Rules = Rules()  # noqa: RUF009 - immutable
    limits: Limits = Limits()  # noqa: RUF009 - immutable
    queue: int = 16
    keep: float = 600


def make_app(
    upscalers: Mapping[str, Upscaler],
    settings: Settings,
    ended: Callable[[Job], None] = lambda _: None,
    bug: Callable[[Exception], None] = lambda _: None,
) -> ASGIApp:
    """The application, for any ASGI server. What it keeps on disk is there while its lifespan lasts.

    Args:
        upscalers: by the names that requests ask for. The caller closes them.
        ended: called with each job when it has ended, in a thread.
        bug: called with each exception of a request that is no TudsrError.
    """
    running: list[Service] = []
    figures = Figures()

    def told(job: Job) -> None:
        figures.job(job)
        ended(job)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with private_folder() as folder:
            worker = Worker(settings.queue, told)
            jobs = Jobs(settings.keep, settings.limits.max_disk_bytes)
            intake = Intake(upscalers, folder, settings.limits, worker, jobs)
            worker.start()
            sweeping = asyncio.create_task(_sweep(jobs))
            running.append(Service(intake, jobs, worker, figures, Page()))
            try:
                yield
            finally:
                sweeping.cancel()
                await asyncio.to_thread(worker.stop)

    app = FastAPI(
        title="tudsr",
        version=__version__,
        summary=SUMMARY,
        lifespan=lifespan,
        docs_url=None,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.include_router(router(lambda: running[0]))
    app.add_exception_handler(TudsrError, _failed)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _failed)
    origins = list(settings.rules.origins)
    inner: ASGIApp = app
    if origins:
        inner = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization"],
        )
    return Guard(inner, settings.rules, figures.answer, bug)


async def _sweep(jobs: Jobs) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        with suppress(OSError):
            jobs.sweep()


async def _failed(_: Request, error: Exception) -> Response:
    return as_response(error)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {quoted(request.url.path)}: {error.detail}"
    body = {"type": "NotHere", "message": said, "hint": "/openapi.json", "exit_code": None}
    return JSONResponse({"error": {**body, "status": error.status_code}}, error.status_code, error.headers)


async def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # Nobody reads it; it is what nginx counts such requests as.
