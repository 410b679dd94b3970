"""The routes: a picture at once, or a job with its progress; the page; the health of the server."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tudsr_runtime.errors import TudsrError
from tudsr_runtime.pictures.formats import FORMAT_OF_SUFFIX, FORMATS
from tudsr_runtime.version import __version__
from tudsr_serve.errors import Cancelled, DeadlinePassed, NotHere, NotYet, as_answer, as_response
from tudsr_serve.figures import CONTENT_TYPE, Figures
from tudsr_serve.form import schema
from tudsr_serve.intake import Intake
from tudsr_serve.jobs import Job, Jobs, Side
from tudsr_serve.page import Page
from tudsr_serve.worker import Worker

HEARTBEAT = 10.0
"""Seconds between signs of life on a stream of events; also shows that the client has gone."""

GRACE = 30.0
"""Seconds past its deadline after which a job that does not end is not waited for any more."""

PIECE_BYTES = 1 << 18
"""Of a file that is sent, in memory at a time."""

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "TIFF": "image/tiff"} | {
    "BMP": "image/bmp",
    "AVIF": "image/avif",
}
PNG = ("image/png",)
SIDES: tuple[Side, ...] = get_args(Side)


@dataclass(frozen=True)
class Service:
    """The parts of a running service."""

    intake: Intake
    jobs: Jobs
    worker: Worker
    figures: Figures
    page: Page


def router(service: Callable[[], Service]) -> APIRouter:
    """The routes of a service, which runs when they are asked."""
    routes = APIRouter()
    body = {"requestBody": schema()}

    @routes.post("/upscale", openapi_extra=body, response_class=Response, responses=_picture("The picture."))
    async def upscale(request: Request) -> Response:
        """Enlarge a picture and wait for it. Who leaves gives it up."""
        running = service()
        job = await running.intake.accept(request)
        try:
            await _over_or_left(job, request)
            return _answer(job, lambda: running.jobs.remove(job))
        except BaseException:
            running.jobs.remove(job)
            raise

    @routes.post("/jobs", openapi_extra=body, status_code=202)
    async def begin(request: Request) -> JSONResponse:
        """Begin to enlarge a picture. The answer is what GET /jobs/ID says."""
        running = service()
        job = await running.intake.accept(request, previews=True)
        if await request.is_disconnected():
            running.jobs.remove(job)  # Nobody learns its id.
        return JSONResponse(summary(job, running.worker), 202, {"Location": f"jobs/{job.id}"})

    @routes.get("/jobs/{identity}")
    async def state(identity: str) -> JSONResponse:
        """How a job stands."""
        running = service()
        job = running.jobs[identity]
        job.asked_about()
        return JSONResponse(summary(job, running.worker))

    @routes.get("/jobs/{identity}/events", response_class=StreamingResponse, responses=_events())
    async def events(identity: str) -> Response:
        """How a job stands, as server-sent events: one at once, one after each tile, and one at its end."""
        running = service()
        job = running.jobs[identity]
        return StreamingResponse(_stream(job, running.worker), media_type="text/event-stream")

    @routes.get("/jobs/{identity}/result", response_class=Response, responses=_picture("The picture."))
    async def result(identity: str) -> Response:
        """The picture, once the job is done; it may be asked for again until it is removed."""
        job = service().jobs[identity]
        if not job.over:
            raise NotYet(f"the job is {job.state}", hint=f"GET jobs/{identity}/events")
        return _answer(job)

    @routes.get("/jobs/{identity}/preview/{side}", response_class=Response, responses=_picture("A PNG.", PNG))
    async def preview(identity: str, side: Side) -> Response:
        """A PNG of at most 2048 px a side of the picture before or after, where browsers do not show it."""
        return JobFileResponse(service().jobs[identity].preview(side), PNG[0])

    @routes.delete("/jobs/{identity}", status_code=204, response_class=Response)
    async def remove(identity: str) -> Response:
        """Give a job up, or remove its result."""
        running = service()
        running.jobs.remove(running.jobs[identity])
        return Response(status_code=204)

    @routes.get("/healthz")
    async def health() -> JSONResponse:
        """Whether pictures are enlarged: 200 or 503."""
        alive = service().worker.alive
        return JSONResponse({"status": "ok" if alive else "the worker has ended"}, 200 if alive else 503)

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters and gauges for Prometheus."""
        running = service()
        return Response(running.figures.text(running.worker, running.jobs), media_type=CONTENT_TYPE)

    @routes.get("/info")
    async def info() -> JSONResponse:
        """What may be asked for: bundles, formats, limits."""
        return JSONResponse(_info(service()))

    @routes.get("/", include_in_schema=False)
    async def page() -> Response:
        return service().page.answer()

    return routes


def _answer(job: Job, sent: Callable[[], None] = lambda: None) -> Response:
    """The picture; or that a bug has ended the job, which was reported when it ended.

    Raises as `PictureResponse`.
    """
    if job.error is None or isinstance(job.error, TudsrError):
        return PictureResponse(job, sent)
    sent()
    return as_response(job.error)


class JobFileResponse(StreamingResponse):
    """Sends a file of a job, whole even if the job is removed meanwhile. Raises NotHere."""

    def __init__(
        self, path: Path, media_type: str, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - closed when it is sent
        except OSError as error:
            raise NotHere("there is no such file, or it has been removed") from error
        length = {"Content-Length": str(os.fstat(self._file.fileno()).st_size)}
        super().__init__(self._pieces(), media_type=media_type, headers={**headers, **length})

    async def _pieces(self) -> AsyncIterator[bytes]:
        while piece := await asyncio.to_thread(self._file.read, PIECE_BYTES):
            yield piece

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._file:
            await super().__call__(scope, receive, send)


class PictureResponse(JobFileResponse):
    """The picture of a job that is done, under the name that the command would give it.

    Raises:
        TudsrError: what the job failed by. NotHere: it has been removed.
    """

    def __init__(self, job: Job, sent: Callable[[], None] = lambda: None) -> None:
        if job.error is not None or job.state != "done":
            raise job.error or Cancelled("the picture was given up")
        kind = MEDIA_TYPES[FORMAT_OF_SUFFIX[job.result.suffix.lower()]]
        super().__init__(job.result, kind, _headers(job))
        self._sent = sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; whatever comes of that, `sent` is called."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._sent()


def _headers(job: Job) -> dict[str, str]:
    plan, name = job.planned.plan, quote(job.result_name, safe="")
    headers = {
        "Content-Disposition": f"attachment; filename*=utf-8''{name}",
        "X-Tudsr-Size": f"{plan.output_width}x{plan.output_height}",
        "X-Tudsr-Seconds": f"{job.seconds or 0:.3f}",
    }
    if job.notes:
        # A header holds ASCII.
        headers["X-Tudsr-Notes"] = json.dumps(job.notes)
    return headers


async def _over_or_left(job: Job, request: Request) -> None:
    """Return when the job is over. Raises ClientDisconnect if nobody waits for it, DeadlinePassed."""
    over, left = asyncio.create_task(job.wait()), asyncio.create_task(_left(request))
    try:
        remaining = job.deadline + GRACE - time.monotonic()
        done, _ = await asyncio.wait((over, left), timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
    finally:
        over.cancel()
        left.cancel()
    if over in done:
        return
    if left in done:
        raise ClientDisconnect
    raise DeadlinePassed("the picture took too long", hint="a smaller scale")


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(job: Job, worker: Worker) -> AsyncIterator[str]:
    async for changed in job.changes(HEARTBEAT):
        # The place in the queue changes by what others do.
        if changed or job.state == "waiting":
            yield f"event: {job.state}\ndata: {json.dumps(summary(job, worker))}\n\n"
        else:
            yield ":\n\n"


def summary(job: Job, worker: Worker) -> dict[str, Any]:
    """What a client is told of its job."""
    told = {
        "id": job.id,
        "status": job.state,
        "name": job.shown,
        **job.planned.summary(job.upscaler),
        "done": job.tiles_done,
        "ahead": worker.ahead(job),
        "seconds": None if job.seconds is None else round(job.seconds, 3),
        "seconds_left": _seconds_left(job),
        "notes": job.notes,
    }
    if job.state == "done":
        made = [side for side in SIDES if job.preview(side).is_file()]
        previews = {side: f"jobs/{job.id}/preview/{side}" for side in made}
        told |= {"result": f"jobs/{job.id}/result", "result_name": job.result_name, "previews": previews}
    return told if job.error is None else {**told, **as_answer(job.error)}


def _seconds_left(job: Job) -> float | None:
    if job.state != "running" or not job.tiles_done or job.seconds is None:
        return None
    return round(job.seconds / job.tiles_done * (job.planned.plan.tiles - job.tiles_done), 1)


def _info(service: Service) -> dict[str, Any]:
    limits = service.intake.limits
    return {
        "version": __version__,
        "bundles": list(service.intake.upscalers),
        "formats": [kind.suffixes[0][1:] for kind in FORMATS.values()],
        "max_upload_bytes": limits.max_upload_bytes,
        "max_input_megapixels": limits.max_input_megapixels,
        "max_output_megapixels": limits.max_output_megapixels,
    }


def _picture(
    said: str, kinds: Sequence[str] = tuple(MEDIA_TYPES.values())
) -> dict[int | str, dict[str, Any]]:
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    return {200: {"description": said, "content": content}}


def _events() -> dict[int | str, dict[str, Any]]:
    return {200: {"description": "Events.", "content": {"text/event-stream": {}}}}
