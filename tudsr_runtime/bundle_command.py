"""`tudsr bundle info` and `tudsr bundle verify`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from tudsr_runtime.bundle import DECODERS, Bundle, open_bundle
from tudsr_runtime.engines.backend import AUTO
from tudsr_runtime.engines.choose import Asked, choose
from tudsr_runtime.golden_tile import LEAST_DB, require_close, run_golden
from tudsr_runtime.manifest import Manifest, NetworkStage
from tudsr_runtime.terminal import Terminal, counted


def bundle_info(bundle: str, as_json: bool) -> None:
    """Print what a bundle says about itself; its files are not read."""
    opened = open_bundle(bundle, verify=False)
    manifest, terminal = opened.manifest, Terminal()
    if as_json:
        terminal.json({"folder": str(opened.folder), "sha256": opened.sha256, **dataclasses.asdict(manifest)})
        return
    for name, value in (*_facts(opened), *_stages_and_graphs(manifest), *_gates(manifest)):
        terminal.result(f"{name + ':':<18}{value}")


def _facts(opened: Bundle) -> Iterator[tuple[str, object]]:
    manifest = opened.manifest
    yield "name", manifest.name
    yield "folder", opened.folder
    yield "sha256", opened.sha256
    yield "made by", f"tudsr {manifest.tudsr_version}"
    yield "licence", manifest.licence
    yield "precision", manifest.precision
    yield "tiles", f"{', '.join(map(str, opened.tiles))} px; made for {manifest.tile} px"
    yield (
        "overlap",
        f"at least {manifest.overlap} px (measured)" if manifest.overlap else "not measured, 128 px",
    )
    yield "decoders", " and ".join(opened.decoders)
    for number, stage in enumerate(manifest.stages):
        for name in opened.decoders:
            view = opened.with_decoder(name)
            counted = {tile: view.macs(number, tile) for tile in opened.tiles}
            takes = (f"{macs / 1e12:.3g} at {tile} px" for tile, macs in counted.items() if macs is not None)
            if shown := ", ".join(takes):
                yield f"TMAC of {stage.name}", shown + ("; light decoder" if name == "light" else "")
    base = manifest.provenance.get("base")
    if isinstance(base, dict):
        yield "base", f"{base.get('id')}, sha256 {str(base.get('sha256'))[:12]}"
    network = manifest.provenance.get("network")
    if isinstance(network, dict):
        yield "network", f"{network.get('architecture')}, sha256 {str(network.get('sha256'))[:12]}"


def _stages_and_graphs(manifest: Manifest) -> Iterator[tuple[str, str]]:
    adapters = manifest.provenance.get("adapters", {})
    for stage in manifest.stages:
        adapter = adapters.get(stage.name, {}) if isinstance(adapters, dict) else {}
        kind = f"; {adapter.get('layout', 'tudsr')} adapter, rank {adapter.get('rank')}" if adapter else ""
        if isinstance(stage, NetworkStage):
            yield stage.name, f"x{stage.factor}, {stage.network} alone, no diffusion"
        else:
            yield stage.name, f"x{stage.factor}, timestep {stage.timestep}{kind}"
    for scale in sorted({plan.scale for plan in manifest.plans}):
        good = ", ".join(plan.factors for plan in manifest.plans if plan.scale == scale)
        yield f"good up to x{scale:g}", f"factors {good} (measured)"
    for name, component in manifest.components.items():
        megabytes = sum(file.bytes for file in component.variants[0].files) / 1e6
        sizes = dict.fromkeys((v.batch, v.tile) for v in component.variants[1:])
        sizes.pop((1, manifest.tile), None)
        more = "".join(f"; also batch {batch}, tile {tile}" for batch, tile in sizes)
        yield name, f"{megabytes:.1f} MB, {component.variants[0].precision}{more}"


def _gates(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """The worst figure of every gate that the export measured."""
    for gate, entry in manifest.numerics.items():
        if not isinstance(entry, dict):
            continue
        found = [figures.get("value") for figures in entry.values() if isinstance(figures, dict)]
        values = [value for value in found if isinstance(value, float | int)]
        least, limit = str(entry.get("unit")).startswith("dB"), entry.get("limit")
        if "status" in entry:
            yield gate, str(entry["status"])
        elif least and values:
            yield gate, f"{min(values):.1f} dB" + (f" (at least {limit})" if limit is not None else "")
        elif values:
            unit = f" {entry['unit']}" if "unit" in entry else ""
            yield (
                gate,
                f"{max(values):{'.1f' if unit else '.1e'}}{unit}"
                + (f" (at most {limit:.1e})" if limit is not None else ""),
            )


def bundle_verify(
    bundle: str,
    backend: str = AUTO,
    device: str = AUTO,
    precision: str = AUTO,
    threads: int | None = None,
    engines: Path | None = None,
    decoder: str = DECODERS[0],
) -> None:
    """Compare every file of a bundle with its manifest, then what a back end makes of its golden tile.

    Raises:
        BundleError: a file differs.
        NotFiniteError: the back end computes something else than what was exported.
        UsageError, DeviceError: as `tudsr_runtime.engines.select.select`.
    """
    opened, terminal = open_bundle(bundle, verify=True).with_decoder(decoder), Terminal()
    files = opened.manifest.files()
    size = sum(file.bytes for file in files) / 1e6
    terminal.result(
        f"{opened.folder}: {counted(len(files), 'file')}, {size:.1f} MB, all as the manifest says"
    )
    if opened.manifest.golden is None:
        terminal.remark("this bundle has no golden tile, so no back end is checked (export it again)")
        return
    asked = Asked(backend, device, precision, engines)
    choice, figures = choose(opened, asked, threads, terminal.note, afresh=True)
    terminal.note(f"back end: {choice}")
    if figures is None:
        figures = run_golden(opened, choice, threads, terminal.remark)
    for figure in figures:
        terminal.result(
            f"golden tile, {figure.stage}: {figure.psnr_db:.1f} dB (at least {LEAST_DB:.0f}), "
            f"largest error {figure.largest * 255:.2f} of 255 levels"
        )
    require_close(figures)
