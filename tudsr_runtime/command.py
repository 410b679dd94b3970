"""`tudsr upscale`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from tudsr_runtime.batch import Batch
from tudsr_runtime.encode import FORMAT_OF_SUFFIX, Encoding
from tudsr_runtime.engines.select import BY_NAME
from tudsr_runtime.errors import UsageError
from tudsr_runtime.folder import expand, find_inputs, is_folder, output_is_folder
from tudsr_runtime.job import Request
from tudsr_runtime.options import UpscaleOptions
from tudsr_runtime.piped import without_dashes
from tudsr_runtime.plan import DEFAULT_SCALE
from tudsr_runtime.record import Records
from tudsr_runtime.size import target_size
from tudsr_runtime.terminal import Terminal
from tudsr_runtime.upscaler import Upscaler


def upscale(inputs: list[Path], options: UpscaleOptions) -> None:
    """Enlarge pictures, files and folders of them.

    Raises:
        TudsrError: of a single input, the error itself; of several, BatchError once all are tried. Errors
            that concern every picture (options, bundle, device, output folder) come before any is computed.
    """
    if options.overwrite and options.on_exists not in ("error", "overwrite"):
        raise UsageError(f"--overwrite and --on-exists {options.on_exists} contradict", hint="leave one out")
    suffix = _suffix(options)
    named = expand(inputs)
    with without_dashes(named, options.output, suffix) as (paths, output, to_stdout):
        if to_stdout and options.as_json:
            raise UsageError("--json and a picture cannot both go to stdout", hint="-o FILE")
        _upscale(paths, dataclasses.replace(options, output=output), suffix, to_stdout)


def _upscale(inputs: list[Path], options: UpscaleOptions, suffix: str | None, to_stdout: bool) -> None:
    started = time.monotonic()
    terminal = Terminal(options.quiet, options.verbose or options.dry_run)
    request = _request(inputs, options, suffix, to_stdout)
    records = Records(lambda text: terminal.note(f"note: {text}"))
    found = find_inputs(inputs, options.recursive, options.output if request.to_folder else None, records)
    for note in found.notes:
        terminal.note(f"note: {note}")
    with Upscaler(
        options.bundle,
        backend=options.backend,
        device=options.device,
        threads=options.threads,
        overlap=options.overlap,
        color=options.color,
        precision=options.precision,
        strength=parse_strength(options.strength),
        notify=lambda text: terminal.note(f"note: {text}"),
        engines=options.engines,
    ) as upscaler:
        terminal.note(upscaler.choice.in_short(upscaler.bundle.manifest.name))
        terminal.detail(f"bundle: {upscaler.bundle.manifest.name}, {upscaler.bundle.manifest.precision}")
        terminal.detail(f"back end: {upscaler.choice}")
        batch = Batch(request, upscaler, terminal, records)
        for path, error in found.unreadable:
            batch.fail(path, error)
        jobs = batch.plan(found.sources, create_folders=not options.dry_run)
        if options.dry_run:
            batch.show(jobs)
        else:
            _build_missing(upscaler, terminal)
            batch.run(jobs)
        batch.finish(time.monotonic() - started)


def _build_missing(upscaler: Upscaler, terminal: Terminal) -> None:
    """Where the back end runs engines that are in nobody's folder: build those that the cache lacks."""
    choice = upscaler.choice
    if (choice.backend, "cuda") in BY_NAME and choice.engines is None:
        from tudsr_runtime.engines.tensorrt.command import build_for_device

        build_for_device(upscaler.bundle, choice, terminal)


def parse_strength(text: str) -> tuple[float, float]:
    """The strength of stage 1 and stage 2 from "0.5", for both, or "1.0,0.6". Raises UsageError."""
    try:
        parts = [float(part) for part in text.split(",")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 2:
        raise UsageError(f"strength must be a number, or two with a comma between, not {text!r}")
    return parts[0], parts[-1]


def _suffix(options: UpscaleOptions) -> str | None:
    """Of --format. Raises UsageError if tudsr does not write it, or -o names another."""
    if options.format is None:
        return None
    suffix, output = f".{options.format.lower()}", options.output
    kind = FORMAT_OF_SUFFIX.get(suffix)
    if kind is None:
        known = ", ".join(FORMAT_OF_SUFFIX).replace(".", "")
        raise UsageError(f"cannot write {options.format!r}; tudsr writes {known}")
    if output is not None and FORMAT_OF_SUFFIX.get(output.suffix.lower(), kind) != kind:
        raise UsageError(f"-o {output} is not {options.format}", hint="leave one of them out")
    return suffix


def _request(inputs: list[Path], options: UpscaleOptions, suffix: str | None, to_stdout: bool) -> Request:
    size = target_size(options.scale, options.width, options.height, options.longest, options.megapixels)
    scale = options.scale
    if scale is None and size is None and options.factors is None:
        scale = DEFAULT_SCALE
    return Request(
        scale=scale,
        factors=options.factors,
        size=size,
        output=options.output,
        to_folder=options.output is not None and output_is_folder(options.output, inputs),
        single=len(inputs) == 1 and not is_folder(inputs[0]),
        suffix=suffix,
        to_stdout=to_stdout,
        on_exists="overwrite" if to_stdout else options.where_taken,
        metadata=options.metadata,
        encoding=Encoding(options.quality, options.compression),
        max_output_megapixels=options.max_output_megapixels,
        as_json=options.as_json,
    )
