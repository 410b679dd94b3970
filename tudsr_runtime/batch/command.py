"""`tudsr upscale`."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tudsr_runtime.batch.done import Records
from tudsr_runtime.batch.inputs import Found, expand, find_inputs, is_folder
from tudsr_runtime.batch.job import Again, Request
from tudsr_runtime.batch.options import UpscaleOptions, as_command, parse_strength
from tudsr_runtime.batch.outputs import output_is_folder
from tudsr_runtime.batch.pipes import PlainFiles, without_pipes
from tudsr_runtime.batch.run import Batch
from tudsr_runtime.batch.selection import Selection, parse_shard
from tudsr_runtime.engines.choose import build_missing
from tudsr_runtime.engines.select import BUILT
from tudsr_runtime.errors import UsageError, quoted
from tudsr_runtime.pictures.formats import FORMAT_OF_SUFFIX
from tudsr_runtime.terminal import Terminal
from tudsr_runtime.tiling.plan import Plan
from tudsr_runtime.upscaler import Upscaler


class Comparison(Protocol):
    """Shows results beside what they were made from; `tudsr_eval` has one."""

    def add(self, source: Path, result: Path) -> None:
        """A picture and what was made of it."""

    def write(self, note: Callable[[str], None]) -> None:
        """Write it. Raises OutputError."""


def upscale(inputs: list[Path], options: UpscaleOptions, comparison: Comparison | None = None) -> None:
    """Enlarge pictures, files and folders of them.

    Args:
        comparison: is handed every result, also of an earlier run, and written in the end.

    Raises:
        TudsrError: of a single input, the error itself; of several, BatchError once all are tried. Errors
            that concern every picture (options, bundle, device, output folder) come before any is computed.
    """
    if options.overwrite and options.on_exists not in ("error", "overwrite"):
        raise UsageError(f"--overwrite and --on-exists {options.on_exists} contradict", hint="leave one out")
    suffix = suffix_of(options)
    named = expand(inputs)
    if options.output == "":
        raise UsageError("-o is empty, and names neither a file nor a folder", hint="-o FILE, or -o FOLDER")
    asked = None if options.output is None else Path(options.output)
    with without_pipes(named, asked, suffix) as plain:
        if plain.to_stdout and options.as_json:
            raise UsageError("--json and a picture cannot both go to stdout", hint="-o FILE")
        # What is shown to be pasted has what the user gave, not the files that stand for stdin and stdout.
        again = partial(at_another_scale, options)
        _upscale(plain, options, suffix, again, comparison)


def at_another_scale(options: UpscaleOptions, path: Path, scale: float) -> str:
    """The command for one picture of these options at another scale."""
    sizes: dict[str, Any] = {
        "width": None,
        "height": None,
        "longest": None,
        "megapixels": None,
        "factors": None,
    }
    folders: dict[str, Any] = {"include": (), "exclude": (), "shard": None, "compare": None}
    return as_command([path], dataclasses.replace(options, scale=scale, **sizes, **folders))


def _upscale(
    plain: PlainFiles,
    options: UpscaleOptions,
    suffix: str | None,
    again: Again,
    comparison: Comparison | None,
) -> None:
    started = time.monotonic()
    terminal = Terminal(options.quiet, options.verbose or options.dry_run, plain.shown)
    request = make_request(plain, options, suffix, again)
    selection = Selection(options.include, options.exclude, parse_shard(options.shard, os.environ))
    if selection.shard and plain.shown:
        raise UsageError("--shard parts files, and stdin is none", hint="leave --shard out")
    records = Records(terminal.remark)
    found = find_inputs(plain.inputs, options.recursive, plain.output if request.to_folder else None, records)
    _leave_out(found, options.compare)
    selection.narrow(found)
    for note in found.notes:
        terminal.remark(note)
    with open_upscaler(options, terminal) as upscaler:
        provide = partial(provide_engines, upscaler, terminal)
        batch = Batch(request, upscaler, terminal, records, provide, partial(sizes, upscaler))
        if comparison is not None and not options.dry_run:
            batch.on_result = comparison.add
        for path, error in found.unreadable:
            batch.fail(path, error)
        jobs = batch.plan(found.sources, found.elsewhere, create_folders=not options.dry_run)
        if options.dry_run:
            batch.show(jobs)
        else:
            batch.run(jobs)
        if comparison is not None and not options.dry_run:
            comparison.write(terminal.note)
        batch.finish(time.monotonic() - started)


def _leave_out(found: Found, comparison: Path | None) -> None:
    """An earlier comparison that lies among the pictures of a folder is none of them."""
    if comparison is not None:
        own = os.path.realpath(comparison)
        kept = [one for one in found.sources if one.folder is None or os.path.realpath(one.path) != own]
        found.sources = kept


@contextmanager
def open_upscaler(options: UpscaleOptions, terminal: Terminal) -> Iterator[Upscaler]:
    """The upscaler of the options; what it runs on is said. Raises as `Upscaler`."""
    with Upscaler(
        options.bundle,
        backend=options.backend,
        device=options.device,
        threads=options.threads,
        overlap=options.overlap,
        color=options.color,
        precision=options.precision,
        strength=parse_strength(options.strength),
        notify=terminal.remark,
        engines=options.engines,
        wrap=options.wrap,
        decoder=options.decoder,
    ) as upscaler:
        bundle = upscaler.bundle
        terminal.note(upscaler.choice.in_short(bundle.title))
        terminal.detail(f"bundle: {bundle.title}, {bundle.manifest.precision}")
        for other in set(bundle.decoders) - {bundle.decoder}:
            terminal.detail(f"the bundle has another decoder as well: --decoder {other}")
        terminal.detail(f"back end: {upscaler.choice}")
        yield upscaler


def sizes(upscaler: Upscaler, plan: Plan) -> Iterator[str]:
    """A line for each stage and size of tiles that was weighed: what it takes on the disk and on the GPU."""
    bundle, choice = upscaler.bundle, upscaler.choice
    places = [(stage.stage, cut.tile) for stage in plan.stages for cut in stage.weighed]
    if choice.backend in BUILT:
        from tudsr_runtime.engines.tensorrt.command import engine_sizes

        yield from engine_sizes(bundle, choice, places)
        return
    precision = choice.precision.name if choice.precision else None
    for stage, tile in places:
        megabytes = bundle.weights(stage, tile, precision) / 1e6
        yield f"stage {stage + 1} with {tile} px: {megabytes:.1f} MB of graphs and weights"


def provide_engines(upscaler: Upscaler, terminal: Terminal, plans: Iterable[Plan]) -> None:
    """Build what the plans need and the cache lacks, where the back end runs engines."""
    places = {place for plan in plans for place in plan.places}
    build_missing(upscaler.bundle, upscaler.choice, places, terminal)


def _ends_in_slash(output: str | None) -> bool:
    """Whether -o says that it is a folder, whatever its name."""
    return output is not None and output.endswith(tuple(filter(None, (os.sep, os.altsep))))


def suffix_of(options: UpscaleOptions) -> str | None:
    """The suffix that --format names. Raises UsageError if tudsr does not write it, or -o names another."""
    suffix, output = suffix_of_format(options.format), Path(options.output or ".")
    if suffix is None:
        return None
    kind = FORMAT_OF_SUFFIX[suffix]
    if FORMAT_OF_SUFFIX.get(output.suffix.lower(), kind) != kind and not _ends_in_slash(options.output):
        raise UsageError(f"-o {output} is not {options.format}", hint="leave one of them out")
    return suffix


def suffix_of_format(name: str | None) -> str | None:
    """The suffix of files in the format of that name. Raises UsageError for one that tudsr does not write."""
    if name is None:
        return None
    suffix = f".{name.lower()}"
    if suffix not in FORMAT_OF_SUFFIX:
        known = ", ".join(FORMAT_OF_SUFFIX).replace(".", "")
        raise UsageError(f"cannot write {quoted(name)}; tudsr writes {known}")
    return suffix


def make_request(plain: PlainFiles, options: UpscaleOptions, suffix: str | None, again: Again) -> Request:
    """What the options ask for of every picture. Raises UsageError: they contradict each other."""
    inputs, output = plain.inputs, plain.output
    return Request(
        options,
        again,
        output=output,
        to_folder=output is not None and (_ends_in_slash(options.output) or output_is_folder(output, inputs)),
        suffix=suffix,
        single=len(inputs) == 1 and not is_folder(inputs[0]),
        to_stdout=plain.to_stdout,
    )
