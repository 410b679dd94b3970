"""One picture of a run of `tudsr upscale`: where it comes from, where it goes, what is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from tudsr_runtime.bundle import file_sha256
from tudsr_runtime.encode import Encoding
from tudsr_runtime.errors import InputError
from tudsr_runtime.folder import Source, name_output
from tudsr_runtime.image_io import Header, Metadata, check_output_size, read_header, read_picture
from tudsr_runtime.picture import Picture
from tudsr_runtime.plan import Plan
from tudsr_runtime.record import Records
from tudsr_runtime.size import TargetSize
from tudsr_runtime.upscaler import Upscaler

OnExists = Literal["error", "skip", "overwrite", "rename"]
"""What becomes of an output that exists and is not what the same command made of the same picture."""


@dataclass(frozen=True)
class Request:
    """What holds for every picture of a run.

    `output` is the file or folder of -o, `to_folder` which of them; `suffix` is that of --format; `single`:
    one file was named, its error is the command's own; `to_stdout`: the picture goes there, not its path.
    """

    scale: float | None
    factors: str | None
    size: TargetSize | None
    output: Path | None
    to_folder: bool
    suffix: str | None
    single: bool
    to_stdout: bool
    on_exists: OnExists
    metadata: Metadata
    encoding: Encoding
    max_output_megapixels: int
    as_json: bool


@dataclass(frozen=True)
class Job:
    """One picture that is to be done. `settings` are the options that its pixels depend on."""

    header: Header
    target: Path
    plan: Plan
    settings: Mapping[str, object] = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> Path:
        """The input file."""
        return self.header.path

    @cached_property
    def sha256(self) -> str:
        """Of the input file when first asked for. Raises InputError."""
        return self._hash()

    def done(self, records: Records) -> Path | None:
        """The result of this very job, if an earlier run left it. Raises InputError."""
        return records[self.target.parent].find(self.source.name, self.sha256, self.settings)

    def read(self, metadata: Metadata) -> tuple[Picture, str]:
        """The picture, and the hash of the very bytes that were decoded.

        Raises:
            InputError: as `read_picture`, or the file changed meanwhile. MemoryExhausted.
        """
        before = self._hash()
        picture = read_picture(self.header, metadata)
        if self._hash() != before:
            raise InputError(f"{self.source}: the file changed while it was read", hint="the same command")
        return picture, before

    def remember(self, records: Records, sha256: str) -> None:
        """Record the result, which has been written, of a picture of that hash."""
        records[self.target.parent].add(self.source.name, sha256, self.settings, self.target)

    def _hash(self) -> str:
        try:
            return file_sha256(self.source)
        except OSError as error:
            raise InputError(f"{self.source}: cannot be read: {error.strerror or error}") from error

    def renamed(self, target: Path) -> Job:
        """The same with another output."""
        return replace(self, target=target)


def plan_job(request: Request, upscaler: Upscaler, source: Source) -> Job:
    """What is to be done with one picture, by its header alone.

    Raises:
        InputError: not a picture, or it would become too large. UsageError: scale or size cannot be meant.
        OutputError: the format holds no picture of that size.
    """
    header = read_header(source.path)
    size = request.size.of(header.width, header.height) if request.size else None
    plan = upscaler.plan(header.width, header.height, request.scale, request.factors, size=size)
    if request.output is not None and not request.to_folder:
        target, note = request.output, None
    else:
        label = f"{size[0]}x{size[1]}" if size else f"x{plan.scale:g}"
        target, note = name_output(source, header, label, request.output, request.suffix)
    check_output_size(header, target, plan.output_width, plan.output_height, request.max_output_megapixels)
    stretched = request.size.stretch(header.width, header.height) if request.size else None
    notes = tuple(said for said in (note, stretched) if said)
    return Job(header, target, plan, _settings(request, upscaler, plan), notes)


def outline(plan: Plan) -> str:
    """Sizes, tiles and factors in a line."""
    sizes = f"{plan.width} x {plan.height} -> {plan.output_width} x {plan.output_height} px"
    return f"{sizes}, {plan.tiles} tiles, factors {plan.reason}"


def _settings(request: Request, upscaler: Upscaler, plan: Plan) -> dict[str, object]:
    return {
        "bundle_sha256": upscaler.bundle.sha256,
        **upscaler.settings,
        "factors": plan.factors,
        "output_px": (plan.output_width, plan.output_height),
        "metadata": request.metadata,
        **asdict(request.encoding),
    }
