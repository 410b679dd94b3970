"""The bundle and every back end, tried: `tudsr doctor` runs a tile wherever one can run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tudsr_runtime.bench.measure import measure
from tudsr_runtime.bundle import BUILTIN_BUNDLES, Bundle, open_bundle
from tudsr_runtime.doctor.findings import Finding
from tudsr_runtime.engines.backend import Precision
from tudsr_runtime.engines.choose import Asked, choose
from tudsr_runtime.engines.select import BY_NAME, ON_REQUEST, PREFERENCE, open_backend
from tudsr_runtime.engines.stages import LoadedEngines
from tudsr_runtime.errors import BundleError, DeviceError, TudsrError
from tudsr_runtime.golden_tile import golden_figures, require_close
from tudsr_runtime.planes import noise_tile
from tudsr_runtime.terminal import counted
from tudsr_runtime.version import __version__


def named_folders(bundle: str) -> list[tuple[Path, str]]:
    """The user's folders that errors of these checks may name, and what to call them."""
    return (
        []
        if bundle in BUILTIN_BUNDLES
        else [(Path(bundle), "<bundle>"), (Path(bundle).absolute(), "<bundle>")]
    )


def check_bundle(bundle: str) -> tuple[Finding, Bundle | None]:
    """Compare the bundle's files with its manifest."""
    try:
        opened = open_bundle(bundle)
    except BundleError as error:
        mend = "install tudsr again" if bundle in BUILTIN_BUNDLES else "export or download it again"
        return Finding("bundle", str(error), "problem", error.hint or mend), None
    manifest = opened.manifest
    name = manifest.name if bundle in BUILTIN_BUNDLES else "the bundle that was named"
    files = counted(len(manifest.files()), "file")
    text = f"{name}, {manifest.precision}, {files}, {opened.bytes / 1e6:.1f} MB, as its manifest says"
    return Finding("bundle", text, facts={"sha256": opened.sha256, "tudsr": __version__}), opened


def check_back_ends(bundle: Bundle | None) -> Iterator[Finding]:
    """Whether each back end runs on each of its devices; where it does, a tile of the bundle, timed."""
    automatic, refused = False, []
    for name, device in (*PREFERENCE, *BY_NAME, *ON_REQUEST):
        unavailable = open_backend(name).probe(device)
        if unavailable is not None:
            refused.append(unavailable)
            yield Finding(f"{name} on {device}", unavailable.problem, "note", unavailable.hint)
            continue
        automatic = automatic or (name, device) in PREFERENCE
        yield Finding(f"{name} on {device}", "available")
        if bundle is not None:
            yield try_tile(bundle, name, device)
    if not automatic:
        hint = next((one.hint for one in reversed(refused[: len(PREFERENCE)])), None)
        yield Finding("back ends", "none that runs without being named", "problem", hint)


def try_tile(bundle: Bundle, name: str, device: str) -> Finding:
    """Run a tile through every stage, compare it with the bundle's golden one, and time the first stage."""
    check = f"tile, {name} on {device}"
    try:
        return _tile(check, bundle, name, device)
    except DeviceError as error:
        # Engines that nobody has built are nothing to mend, unless they are wanted.
        return Finding(check, str(error), "note" if (name, device) in BY_NAME else "problem", error.hint)
    except TudsrError as error:
        return Finding(check, str(error), "problem", error.hint)


def _tile(check: str, bundle: Bundle, name: str, device: str) -> Finding:
    choice, _ = choose(bundle, Asked(name, device))
    precision = choice.precision or Precision(bundle.manifest.precision, "the bundle's")
    edge = bundle.source_edge(0, bundle.manifest.tile)
    x = noise_tile(edge)
    with LoadedEngines(bundle, choice) as engines:
        figures = golden_figures(bundle, engines)
        stage = engines.stage(0)
        seconds = measure(lambda: stage.run(x), warmup=1, repeats=1).min
    require_close(figures)
    facts = {
        "seconds": round(seconds, 4),
        "precision": precision.name,
        "golden_db": {one.stage: round(min(one.psnr_db, 999.0), 1) for one in figures},
    }
    right = ", ".join(f"{one.stage} {one.psnr_db:.0f} dB" for one in figures) or "it has no golden tile"
    text = f"{seconds:.2f} s for {edge} x {edge} px in {precision.name} ({precision.reason}); golden: {right}"
    return Finding(check, text, facts=facts)
