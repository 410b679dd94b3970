"""The export of a network that enlarges by itself: one graph, through the same gates as a stage's three."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tudsr_export.bundle_writer import MODEL_CARD, list_component
from tudsr_export.calibration import network_tiles, small_synthetic_tile
from tudsr_export.engine_gate import build_all
from tudsr_export.gates import BAKED, HALF, REACH, Measurement, Report, psnr_db
from tudsr_export.golden_tile import write_golden
from tudsr_export.model_card import network_card
from tudsr_export.networks import Network, read_network
from tudsr_export.part import Graph, Part, write_graphs
from tudsr_export.plan import NetworkPlan, Shape
from tudsr_export.round_trip import RoundTrip
from tudsr_export.seams import LEAST_OVERLAP, Seams, overlap_for, reach_of
from tudsr_runtime.atomic import atomic_dir
from tudsr_runtime.bundle import MANIFEST_NAME
from tudsr_runtime.engines.backend import Notify
from tudsr_runtime.errors import BundleError, UsageError
from tudsr_runtime.factors import MAX_SCALE
from tudsr_runtime.golden_tile import middle
from tudsr_runtime.manifest import MAX_TILE, MIN_TILE, SCHEMA_VERSION, Golden, Manifest, NetworkStage
from tudsr_runtime.tiling.axis import OVERLAP, TILE
from tudsr_runtime.version import __version__
from tudsr_train.foreign import misread

COMPONENT = "network"
PORTS = ("x_L", "x_H")
LARGER_TILE = 1024
"""Px of a further size of tiles: those of 512 compute 1.8 times what they show, these 1.3 times."""
HALF_RETRIES = 4
"""How many more blocks may become float32 islands for the sake of `half_vs_float32`."""
TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")


def export_network(plan: NetworkPlan, report: Report, notify: Notify) -> None:
    """Write the bundle `plan.output`, whole or not at all; the gates' figures are added to `report`.

    Raises:
        BundleError: the checkpoint is missing, damaged, or holds what cannot be exported.
        DeviceError: spandrel is not installed.
        NotFiniteError: a gate failed.
        OutputError: the bundle cannot be written there.
        UsageError: the network cannot have tiles of a size that was asked for.
    """
    with atomic_dir(plan.output, plan.overwrite, own=MANIFEST_NAME) as folder, torch.no_grad():
        network = _read(plan)
        _announce(network, notify)
        plan = sized(plan, network)
        _NetworkExport(plan, folder, network, report, notify).run()


def _read(plan: NetworkPlan) -> Network:
    if plan.base is None:
        return read_network(plan.checkpoint)
    from tudsr_export.inverse import read_inverse

    most_px = max(plan.tile, LARGER_TILE, *(plan.tiles or ()))
    return read_inverse(plan.checkpoint, plan.base, most_px, plan.timestep, plan.prompt)


def sized(plan: NetworkPlan, network: Network) -> NetworkPlan:
    """The plan with sizes of tiles that the network can have.

    Half a tile has to be a whole number of input pixels, and a tile one that the network takes unpadded.
    """
    step = network.factor * math.lcm(2, network.multiple)
    least = max(MIN_TILE, network.least * network.factor)

    def nearest(tile: int) -> int:
        return max(math.ceil(least / step), tile // step) * step

    for tile in plan.tiles or ():
        if tile % step or not least <= tile <= MAX_TILE:
            possible = f"multiples of {step} px from {nearest(least)} to {MAX_TILE}"
            raise UsageError(
                f"--tile {tile}: this network takes {possible}",
                hint=f"--tile {min(nearest(tile), MAX_TILE // step * step)}",
            )
    more = plan.tiles if plan.tiles is not None else (nearest(LARGER_TILE),) if plan.tile == TILE else ()
    return replace(plan, tile=nearest(plan.tile), tiles=more)


def _announce(network: Network, notify: Notify) -> None:
    notify(f"network {network.title}, x{network.factor}, sha256 {network.sha256[:12]}")
    if network.note:
        notify(f"{network.architecture}: {network.note}")


class _NetworkExport:
    """One run. `tiles` are the calibration tiles, `made` what the network makes of them in float32."""

    def __init__(
        self, plan: NetworkPlan, folder: Path, network: Network, report: Report, notify: Notify
    ) -> None:
        if plan.precision == "fp16" and not network.half:
            raise BundleError(
                f"{network.origin}: {network.architecture} does not compute in half",
                hint="--precision fp32",
            )
        self.plan, self.folder, self.network, self.report, self.notify = plan, folder, network, report, notify
        self.edge = plan.tile // network.factor
        self.tiles = network_tiles(self.edge)
        self.made = [network.module(x) for x in self.tiles]
        self.part = Part(COMPONENT, network.module, PORTS, plan.precision)

    def run(self) -> None:
        """Through all gates, and into the folder."""
        network, plan, report = self.network, self.plan, self.report
        first = self.made[0].clamp(-1, 1)
        report.relative(BAKED, f"{COMPONENT}, by {network.reader}", first, network.reference(self.tiles[0]))
        self.part.calibrate(self.tiles, self.made, report, COMPONENT)
        trip, seams = RoundTrip(plan.tile, 1, network.factor), self._seams()
        trip.through(network.module)
        seams.through(self._of_enlarged, COMPONENT, report)
        overlap = self._overlap(seams.overlap)
        golden = self._golden()
        if plan.precision == "fp16":
            self._halve()
        graphs = self._write()
        manifest = self._manifest(graphs, golden, overlap)
        self._write_files(manifest)
        trip.compare(self.folder, plan.precision, report)
        build_all(self.folder, {COMPONENT: graphs}, report, self.notify)
        self._write_files(replace(manifest, numerics=report.as_json()))

    def _seams(self) -> Seams:
        # What two tiles and the one across them show has to lie on whole input pixels.
        step = 2 * self.network.factor
        usual, closer = (math.ceil(overlap / step) * step for overlap in (OVERLAP, LEAST_OVERLAP))
        return Seams(self.plan.tile, (usual, closer))

    def _overlap(self, usual: int | None) -> int | None:
        """The least overlap that is good by the seams, or more, where the network sees further than that and
        the greatest tiles may overlap by as much."""
        if usual is None:
            return None
        network, factor = self.network, self.network.factor
        beyond = math.ceil(self.edge * 3 / 4 / network.multiple) * network.multiple
        reach = reach_of(network.module, self.edge, beyond)
        self.report.add(Measurement(REACH, COMPONENT, reach))
        wanted = overlap_for(reach, usual, 2 * factor)
        most = max(shape.tile for shape in self.plan.shapes) // 2
        if wanted <= most:
            return wanted
        self.notify(
            f"{COMPONENT}: the edge of a tile shows {reach} px far, further than an overlap of {most} px "
            f"mends; it stays at {usual} px"
        )
        return usual

    def _of_enlarged(self, x: Tensor) -> Tensor:
        factor = self.network.factor
        return self.network.module(x[..., ::factor, ::factor].contiguous())

    def _golden(self) -> Golden:
        outputs = [self.made[0].clamp(-1, 1)]
        for _ in self._stages()[1:]:
            x = np.ascontiguousarray(middle(outputs[-1].numpy(), self.edge))
            outputs.append(self.network.module(torch.from_numpy(x)).clamp(-1, 1))
        return write_golden(self.folder, self.tiles[0], outputs)

    def _stages(self) -> tuple[NetworkStage, ...]:
        """The network once, and once more where that is of use."""
        factor = self.network.factor
        passes = 2 if factor > 1 and factor**2 <= MAX_SCALE else 1
        return tuple(NetworkStage(f"stage{number + 1}", factor, COMPONENT) for number in range(passes))

    def _halve(self) -> None:
        """The gate half_vs_float32, with more float32 islands where it fails."""
        expected = torch.cat(self.made).clamp(-1, 1)
        halved = self._in_half()
        for _ in range(HALF_RETRIES):
            found = psnr_db(halved, expected, span=2)
            if found is None or found >= float(HALF.limit or 0):
                break
            self.part.keep_in_float32(self.part.candidate()[1])
            halved = self._in_half()
        self.report.psnr(HALF, COMPONENT, halved, expected, span=2)

    def _in_half(self) -> Tensor:
        origin = self.network.origin
        with misread(f"{origin}: cannot be computed in half", hint="--precision fp32"):
            return torch.cat([self.part.run(x) for x in self.tiles]).clamp(-1, 1)

    def _write(self) -> list[Graph]:
        self.notify(f"{COMPONENT}: exporting in {self.plan.precision}")
        if self.part.islands:
            names = sorted(self.part.islands.blocks | self.part.islands.attention)
            self.notify(f"{COMPONENT}: {len(names)} blocks stay in float32")
        examples = {shape: self._example(shape, self.network.module) for shape in self.plan.shapes}
        with misread(f"{self.network.origin}: cannot be written as ONNX"):
            return write_graphs(self.part, self.folder / COMPONENT, examples, self.report)

    def _example(self, shape: Shape, module: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """An input in a shape, and what the float32 network makes of it."""
        own = shape.tile == self.plan.tile
        x = self.tiles[0] if own else small_synthetic_tile(shape.tile // self.network.factor)
        x = torch.cat([x.roll(8 * index, -1) for index in range(shape.batch)])
        return x, module(x)

    def _manifest(self, graphs: list[Graph], golden: Golden, overlap: int | None) -> Manifest:
        plan, network = self.plan, self.network
        provenance: dict[str, Any] = {
            "network": {
                "architecture": network.title,
                "file": network.origin.name,
                "sha256": network.sha256,
                "reader": network.reader,
            },
            **({"base": dict(network.base)} if network.base else {}),
            "float32_islands": {COMPONENT: self.part.islands.as_json()} if self.part.islands else {},
            "tools": {tool: version(tool) for tool in (network.reader, *TOOLS)},
        }
        try:
            return Manifest(
                schema_version=SCHEMA_VERSION,
                name=plan.name,
                tudsr_version=__version__,
                licence=plan.licence,
                tile=plan.tile,
                latent=None,
                precision=plan.precision,
                stages=self._stages(),
                components={COMPONENT: list_component(self.folder / COMPONENT, graphs)},
                provenance=provenance,
                numerics=self.report.as_json(),
                golden=golden,
                plans=plan.plans,
                overlap=overlap,
            )
        except ValueError as error:
            raise UsageError(f"these options make no bundle of this network: {error}") from error

    def _write_files(self, manifest: Manifest) -> None:
        (self.folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        (self.folder / MODEL_CARD).write_text(network_card(manifest, self.plan.about), encoding="utf-8")
