"""From a request to a job: its form is read, its picture kept and its header looked at, and it waits."""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest

from tudsr_runtime.batch.command import suffix_of_format
from tudsr_runtime.batch.inputs import Source
from tudsr_runtime.batch.job import Job as Planned
from tudsr_runtime.batch.job import Request, plan_job
from tudsr_runtime.batch.options import UpscaleOptions, parse_strength
from tudsr_runtime.errors import OutputError, TudsrError, UsageError, quoted
from tudsr_runtime.pictures.formats import FORMAT_OF_SUFFIX
from tudsr_runtime.pictures.read import read_header
from tudsr_runtime.upscaler import Upscaler
from tudsr_serve.errors import Full, TooLarge, renamed
from tudsr_serve.form import read_form
from tudsr_serve.guard import too_large
from tudsr_serve.jobs import Job, Jobs
from tudsr_serve.worker import Worker

STEM = "picture"
"""What a picture is called on the server, whatever the client calls it."""

LOOKS_AT_ONCE = 2
"""Pictures whose headers are read at the same time."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for: bytes of a file, 10^6 px in and out, seconds; bytes of all files."""

    max_upload_bytes: int = 64 << 20
    max_input_megapixels: int = 64
    max_output_megapixels: int = 268
    deadline: float = 900
    max_disk_bytes: int = 4_000_000_000


class Intake:
    """Makes jobs of requests.

    Args:
        upscalers: by the name that a request may ask for; the first is what runs where none is asked for.
        folder: where the files of jobs are.
    """

    def __init__(
        self, upscalers: Mapping[str, Upscaler], folder: Path, limits: Limits, worker: Worker, jobs: Jobs
    ) -> None:
        self.upscalers, self.limits = upscalers, limits
        self._folder, self._worker, self._jobs = folder, worker, jobs
        self._looks = asyncio.Semaphore(LOOKS_AT_ONCE)

    async def accept(self, request: HttpRequest, previews: bool = False) -> Job:
        """Make a job of a request and put it into the queue; `previews` is that of `Job`.

        Raises:
            Busy: the queue is full; the request is not read then. And what is wrong with it, its picture or
                its options.
        """
        self._worker.check_room()
        if self._jobs.bytes() > self.limits.max_disk_bytes:
            self._jobs.sweep()
        if self._jobs.bytes() > self.limits.max_disk_bytes:
            raise Full("there is no room for another picture", hint="later", retry_after=30)
        file, options = await read_form(request)
        try:
            job = await self._look(file, options)
        finally:
            await file.close()
        job.previews = previews
        try:
            self._worker.submit(job)
        except TudsrError:
            shutil.rmtree(job.folder, ignore_errors=True)
            raise
        self._jobs.add(job)
        return job

    async def _look(self, file: UploadFile, options: UpscaleOptions) -> Job:
        loop, deadline = asyncio.get_running_loop(), time.monotonic() + self.limits.deadline
        async with self._looks:
            return await asyncio.to_thread(self._planned, file, options, loop, deadline)

    def _planned(
        self, file: UploadFile, options: UpscaleOptions, loop: asyncio.AbstractEventLoop, deadline: float
    ) -> Job:
        upscaler = self._upscaler(options)
        try:
            folder = Path(tempfile.mkdtemp(dir=self._folder))
        except OSError as error:
            raise OutputError(f"the server cannot keep a picture: {error.strerror or error}") from error
        try:
            source, shown = self._kept(file, folder)
            try:
                request, planned = self._plan(source, folder, upscaler, options)
            except TudsrError as error:
                raise renamed(error, {str(source): shown, str(folder): ""}) from error
            return Job(shown, folder, planned, request, upscaler, deadline, loop)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _kept(self, file: UploadFile, folder: Path) -> tuple[Path, str]:
        """The picture as a file of our own, and the client's name of it."""
        if (file.size or 0) > self.limits.max_upload_bytes:
            raise too_large(self.limits.max_upload_bytes)
        shown = shown_name(file.filename)
        # By its suffix the command says what it calls a file whose name and content disagree.
        suffix = Path(shown).suffix
        source = folder / f"{STEM}{suffix if suffix.lower() in FORMAT_OF_SUFFIX else ''}"
        try:
            with open(source, "xb") as kept:
                shutil.copyfileobj(file.file, kept)
        except OSError as error:
            raise OutputError(f"the server cannot keep a picture: {error.strerror or error}") from error
        return source, shown

    def _upscaler(self, options: UpscaleOptions) -> Upscaler:
        name = options.bundle or next(iter(self.upscalers))
        found = self.upscalers.get(name)
        if found is None:
            hint = f"one of {', '.join(self.upscalers)}"
            raise UsageError(f"there is no bundle {quoted(name)} here", hint=hint)
        strength = parse_strength(options.strength)
        return found.with_look(
            strength=strength, color=options.color, overlap=options.overlap, wrap=options.wrap
        )

    def _plan(
        self, source: Path, folder: Path, upscaler: Upscaler, options: UpscaleOptions
    ) -> tuple[Request, Planned]:
        header = read_header(source, math.inf)
        megapixels = header.width * header.height / 1e6
        if megapixels > self.limits.max_input_megapixels:
            limit = self.limits.max_input_megapixels
            raise TooLarge(
                f"{header.width} x {header.height} px are {megapixels:.1f} megapixels, more than {limit}",
                hint="a smaller picture, or a part of it",
            )
        request = self._request(folder, options)
        planned = plan_job(request, upscaler, Source(source))
        if planned.target == source:
            planned = planned.renamed(source.with_stem(f"{STEM}_result"))
        return request, planned

    def _request(self, folder: Path, options: UpscaleOptions) -> Request:
        limited = replace(
            options,
            max_input_megapixels=self.limits.max_input_megapixels,
            max_output_megapixels=self.limits.max_output_megapixels,
        )
        return Request(
            limited,
            again=lambda _, scale: f"scale={scale:g}",
            output=folder,
            to_folder=True,
            suffix=suffix_of_format(options.format),
            single=True,
        )


def shown_name(given: str | None) -> str:
    """A client's name of a file made fit to be repeated: its last part, printable letters only."""
    name = re.split(r"[/\\]", given or "")[-1]
    name = "".join(letter for letter in name if letter.isprintable()).strip(". ")
    with suppress(UnicodeEncodeError):
        name.encode()
        return name[-100:] or STEM
    return STEM
