"""One picture of a run of `tudsr upscale`: where it comes from, where it goes, what is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from tudsr_runtime.batch.done import Records
from tudsr_runtime.batch.inputs import Source
from tudsr_runtime.batch.options import OnExists, UpscaleOptions
from tudsr_runtime.batch.outputs import name_output
from tudsr_runtime.batch.target_size import TargetSize, largest_scale, scaled_size, target_size
from tudsr_runtime.errors import InputError, OutputError
from tudsr_runtime.files import file_sha256
from tudsr_runtime.pictures.picture import Picture
from tudsr_runtime.pictures.read import Header, Metadata, read_header, read_picture
from tudsr_runtime.pictures.write import Encoding, check_format_limits
from tudsr_runtime.terminal import counted
from tudsr_runtime.tiling.cost import SECONDS
from tudsr_runtime.tiling.plan import Plan
from tudsr_runtime.upscaler import Upscaler

Again = Callable[[Path, float], str]
"""Makes the command line for one picture of the run at another scale."""


@dataclass(frozen=True)
class Request:
    """What holds for every picture of a run: its options, and what follows from them and from the inputs.

    `output` is the file or folder of -o, `to_folder` which of them; `suffix` is that of --format; `single`:
    one file was named, its error is the command's own; `to_stdout`: the picture goes there, not its path.

    Raises:
        UsageError: options contradict each other.
    """

    options: UpscaleOptions
    again: Again
    output: Path | None
    to_folder: bool
    suffix: str | None
    single: bool
    to_stdout: bool = False

    def __post_init__(self) -> None:
        self.size  # noqa: B018 - raises

    @cached_property
    def size(self) -> TargetSize | None:
        """What the result is to measure; None where the scale says so, or nothing does but the bundle."""
        told = self.options
        return target_size(told.scale, told.width, told.height, told.longest, told.megapixels)

    @property
    def on_exists(self) -> OnExists:
        """What becomes of an output that exists."""
        return "overwrite" if self.to_stdout else self.options.where_taken

    @property
    def encoding(self) -> Encoding:
        """How results are compressed."""
        return Encoding(self.options.quality, self.options.compression)


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
        """Hash of the input file, as it was when first asked for. Raises InputError."""
        return self._hash()

    def earlier_result(self, records: Records, any_name: bool) -> Path | None:
        """The result of this very job, if an earlier run left it, be it renamed. Raises InputError."""
        output = None if any_name else self.target.name
        return records[self.target.parent].find(self.source.name, self.sha256, self.settings, output)

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

    def summary(self, upscaler: Upscaler) -> dict[str, object]:
        """What is computed with which model on which machine, for --json."""
        choice = upscaler.choice
        return {
            **self.plan.as_json(),
            "backend": choice.backend,
            "device": choice.device,
            "precision": choice.precision.name if choice.precision else None,
            "bundle_sha256": upscaler.bundle.sha256,
        }

    def renamed(self, target: Path) -> Job:
        """A copy of the job with another output."""
        return replace(self, target=target)


def plan_job(request: Request, upscaler: Upscaler, source: Source) -> Job:
    """What is to be done with one picture, by its header alone.

    Raises:
        InputError: not a picture, or it would become too large. UsageError: scale or size is invalid.
        OutputError: the format holds no picture of that size.
    """
    header = read_header(source.path, request.options.max_input_megapixels)
    size = request.size.of(header.width, header.height) if request.size else None
    plan = upscaler.plan(
        header.width, header.height, request.options.scale, request.options.factors, size=size
    )
    if request.output is not None and not request.to_folder:
        target, note = request.output, None
    else:
        label = f"{size[0]}x{size[1]}" if size else f"x{plan.scale:g}"
        target, note = name_output(source, header, label, request.output, request.suffix)
    limit = request.options.max_output_megapixels
    check_output_size(header, target, plan.output_width, plan.output_height, limit, request.again)
    stretched = request.size.stretch(header.width, header.height) if request.size else None
    notes = tuple(said for said in (note, stretched) if said)
    return Job(header, target, plan, _settings(request, upscaler, plan), notes)


def check_output_size(
    header: Header, target: Path, width: int, height: int, max_megapixels: int, again: Again | None = None
) -> None:
    """Refuse what would be too large, before anything is decoded.

    Args:
        again: makes the command that the hint is: the same for this picture, at the largest scale that fits.

    Raises:
        InputError: more than `max_megapixels` (10^6 pixels, rounded down) would come out.
        OutputError: the output format cannot hold that number of pixels.
    """
    smaller = again and _at_the_largest_scale(header, target, max_megapixels, again)
    if width * height // 1_000_000 > max_megapixels:
        larger = f"--max-output-megapixels {width * height // 1_000_000}"
        raise InputError(
            f"{header.path}: {header.width} x {header.height} would become {width} x {height}, "
            f"{width * height / 1e6:.0f} megapixels; the limit is {max_megapixels} (--max-output-megapixels)",
            hint=smaller or larger,
        )
    try:
        check_format_limits(target, width, height)
    except OutputError as error:
        hint = f"{error.hint}, or {smaller}" if smaller else error.hint
        raise OutputError(str(error), hint=hint) from None


def _at_the_largest_scale(header: Header, target: Path, max_megapixels: int, again: Again) -> str | None:
    """The command for this picture at the largest scale that is accepted; None if none is."""

    def fits(scale: float) -> bool:
        width, height = scaled_size(header.width, header.height, scale)
        try:
            check_format_limits(target, width, height)
        except OutputError:
            return False
        return width * height // 1_000_000 <= max_megapixels

    scale = largest_scale(fits)
    return None if scale is None else again(header.path, scale)


def outline(plan: Plan) -> str:
    """Sizes, tiles and factors in a line."""
    sizes = f"{plan.width} x {plan.height} -> {plan.output_width} x {plan.output_height} px"
    takes = "" if plan.cost is None else f", {amount(plan.cost, plan)}"
    return f"{sizes}, {counted(plan.tiles, 'tile')}{takes}, factors {plan.reason}"


def amount(cost: float, plan: Plan) -> str:
    """A cost of a plan with its unit."""
    unit = plan.costs.unit if plan.costs else ""
    return f"{cost:.1f} {unit}" if cost >= 1 else f"{cost:.3g} {unit}"


def weighing(plan: Plan) -> Iterator[str]:
    """For each stage, a line about the sizes of tiles that there were to choose from; none if there were
    none."""
    for stage in plan.stages:
        taken, *others = (
            f"{counted(cut.tiles, 'tile')} of {cut.tile} px"
            + ("" if cut.cost is None else f" ({amount(cut.cost, plan)})")
            for cut in stage.weighed
        )
        if others:
            yield f"stage {stage.stage + 1}: {taken}, rather than {' or '.join(others)}"
    if plan.costs and len(plan.stages[0].weighed) > 1:
        yield f"chosen by the {'time' if plan.costs.unit == SECONDS else 'arithmetic'}: {plan.costs.reason}"


def weighed_record(plan: Plan) -> list[dict[str, object]]:
    """What `weighing` tells, for --json; of each stage the size that is taken comes first."""
    unit = plan.costs.unit.lower() if plan.costs else "cost"
    return [
        {"stage": stage.stage + 1, "tile": cut.tile, "tiles": cut.tiles, unit: cut.cost}
        for stage in plan.stages
        for cut in stage.weighed
    ]


def _settings(request: Request, upscaler: Upscaler, plan: Plan) -> dict[str, object]:
    return {
        "bundle_sha256": upscaler.bundle.sha256,
        **upscaler.settings,
        "factors": plan.factors,
        "output_px": (plan.output_width, plan.output_height),
        "metadata": request.options.metadata,
        **asdict(request.encoding),
    }
