"""The export from end to end: every stage is merged, folded, halved, exported, compared; then published."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tudsr_export.bundle_writer import DECODER, BundleFacts, list_component, write_bundle_files
from tudsr_export.calibration import calibration_tiles, synthetic_tile
from tudsr_export.engine_gate import build_all
from tudsr_export.float32_islands import Islands
from tudsr_export.gates import HALF, IDENTICAL_DB, MERGED, Report, psnr_db
from tudsr_export.golden_tile import write_golden
from tudsr_export.graphs import TransformerStage, encoder_graph, stage_graph, vae_graphs
from tudsr_export.layouts import StageAdapter, read_adapter
from tudsr_export.light import Light
from tudsr_export.merge import BASE_ENCODER, StageSettings, attach_stage, merge_adapter
from tudsr_export.part import Graph, Part, write_graphs
from tudsr_export.plan import ExportPlan, Shape
from tudsr_export.round_trip import RoundTrip
from tudsr_export.seams import Seams
from tudsr_runtime.atomic import atomic_dir
from tudsr_runtime.bundle import MANIFEST_NAME
from tudsr_runtime.engines.backend import Notify
from tudsr_runtime.errors import UsageError
from tudsr_runtime.manifest import Golden
from tudsr_runtime.tiling.axis import TILE
from tudsr_train.generator import Generator

MORE_TILES = (256, 576)
"""Further sizes of tiles of a large base: for canvases of up to 256 px, and for those of 1024 or 2048 px."""
LARGE = 300_000_000
"""Parameters of the UNet from which a tile takes so long that these are worth their disk space."""
HALF_RETRIES = 4
"""How many more blocks may become float32 islands for the sake of `half_vs_float32`."""


def export_bundle(plan: ExportPlan, report: Report, notify: Notify) -> None:
    """Write the bundle `plan.output`, whole or not at all; the gates' figures are added to `report`.

    Raises:
        BundleError: the base or an adapter is missing, damaged, or they do not fit each other.
        NotFiniteError: a gate failed.
        OutputError: the bundle cannot be written there.
    """
    with atomic_dir(plan.output, plan.overwrite, own=MANIFEST_NAME) as folder, torch.no_grad():
        adapters = {stage: read_adapter(origin) for stage, origin in sorted(plan.adapters.items())}
        base = Generator.load(plan.base).eval()
        plan = sized(plan, base)
        _require_shapes(plan, base)
        notify(f"base {base.base_id}, {base.prediction_type}, sha256 {base.base_sha256[:12]}")
        # What does not fit is found now, and not after the minutes that the stage before it takes.
        for stage, adapter in adapters.items():
            attach_stage(base, adapter, stage, plan.timesteps.get(stage), plan.prompt)
        export = _Export(plan, folder, base, report, notify)
        for stage, adapter in adapters.items():
            export.stage(stage, adapter)
        export.autoencoder()
        facts = export.facts(write_golden(folder, export.tiles[0], export.outputs, export.light_outputs))
        write_bundle_files(folder, facts, report.as_json())
        export.forget()
        export.trip.compare(folder, plan.precision, report)
        build_all(folder, export.graphs, report, notify)
        write_bundle_files(folder, facts, report.as_json())


def sized(plan: ExportPlan, base: Generator) -> ExportPlan:
    """The plan with the sizes of tiles that a base of this size gets, where none were asked for."""
    if plan.tiles is not None:
        return plan
    parameters = sum(parameter.numel() for parameter in base.unet.parameters())
    large = plan.tile == TILE and parameters >= LARGE
    return replace(plan, tiles=MORE_TILES if large else ())


def _require_shapes(plan: ExportPlan, base: Generator) -> None:
    multiple, most = base.multiple, base.backbone.most_cells(base.unet)
    for shape in plan.shapes:
        if shape.tile % multiple:
            raise UsageError(f"tile {shape.tile} is no multiple of {multiple}, which this base needs")
        if most is not None and shape.tile > most * base.pixels_per_cell:
            raise UsageError(
                f"tile {shape.tile} is more than {most * base.pixels_per_cell}, beyond which this base knows "
                "no positions"
            )


class _Export:
    """One run.

    `tiles` are the calibration tiles; `now` is what the generator, in float32, makes of them in the stages so
    far, clamped, and `halved` what the exported modules make of them.
    """

    def __init__(
        self, plan: ExportPlan, folder: Path, base: Generator, report: Report, notify: Notify
    ) -> None:
        self.plan, self.folder, self.base, self.report, self.notify = plan, folder, base, report, notify
        self.tiles = self.now = self.halved = calibration_tiles(plan.tile)
        self.stages: list[StageSettings] = []
        self.outputs: list[Tensor] = []
        """What every stage makes of the first tile, clamped."""
        self.trip = RoundTrip(plan.tile, len(plan.adapters))
        self.seams = Seams(plan.tile)
        self.graphs: dict[str, list[Graph]] = {}
        self.islands: dict[str, Any] = {}
        encoder, decoder = vae_graphs(base.vae)
        self.encoder = Part(BASE_ENCODER, encoder.eval(), ("image", "z_L"), plan.precision)
        self.decoder = Part(DECODER, decoder.eval(), ("z_H", "image"), plan.precision)
        self.light: Light | None = None
        if plan.light_decoder is not None:
            self.light = Light(plan.light_decoder, base, plan.precision, plan.vgg16, self.tiles[0])

    @property
    def light_outputs(self) -> list[Tensor]:
        """As `outputs`, with the light decoder; none where there is none."""
        return self.light.outputs if self.light else []

    def stage(self, stage: int, adapter: StageAdapter) -> None:
        """Merge, fold and export one stage's UNet; the references move on through the stage."""
        plan = self.plan
        generator, settings = attach_stage(self.base, adapter, stage, plan.timesteps.get(stage), plan.prompt)
        self._announce(settings)
        z_L, z_H, images = self._reference(generator, settings)
        encoder = self._encoder(generator, settings)
        cell, margin = self.base.pixels_per_cell, 2 * self.base.latent_margin
        sides = sorted({shape.tile // cell + margin for shape in plan.shapes})
        unet = Part(
            settings.unet,
            stage_graph(generator, settings.timestep, settings.formula, sides),
            ("z_L", "z_H"),
            plan.precision,
            network=None if generator.backbone.component == "unet" else TransformerStage.network_part,
        )
        # At full size a second float32 UNet would not fit beside what the exporter needs.
        del generator
        encoder.calibrate(self.now, z_L, self.report, f"{encoder.name}, {settings.name}")
        unet.calibrate(z_L, z_H, self.report, settings.unet)
        self.decoder.calibrate(z_H, images, self.report, f"{DECODER}, {settings.name}")
        self.now = [image.clamp(-1, 1) for image in images]
        self.outputs.append(self.now[0])
        halved = self._halve((encoder, unet, self.decoder), self.now, settings.name)
        if self.light is not None:
            light = self.light.compare(z_H, self.now, settings.name, self.report)
            self._halve((encoder, unet, self.light.part), light, f"{settings.name}, light decoder")
        self.halved = halved
        if encoder is not self.encoder:
            self._write(encoder)
        self._write(unet)
        self.stages.append(settings)

    def autoencoder(self) -> None:
        """Export the parts of the autoencoder that the stages share."""
        if any(stage.encoder == BASE_ENCODER for stage in self.stages):
            self._write(self.encoder)
        self._write(self.decoder)
        if self.light is not None:
            self._write(self.light.part)

    def facts(self, golden: Golden) -> BundleFacts:
        """All that is known in the end, but for the figures."""
        components = {
            name: list_component(self.folder / name, graphs) for name, graphs in sorted(self.graphs.items())
        }
        return BundleFacts(
            self.plan,
            self.base,
            tuple(self.stages),
            components,
            golden,
            self.islands,
            self.light.part.name if self.light else None,
            self.seams.overlap,
        )

    def forget(self) -> None:
        """Free the base's UNet; from here on the bundle's own graphs take its place in memory."""
        self.base.unet = torch.nn.Identity()

    def _reference(
        self, generator: Generator, settings: StageSettings
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """z_L, z_H and picture of every tile with the adapter attached; afterwards it is merged."""
        t = settings.timestep
        z_L = [generator.encode(x) for x in self.now]
        predictions = [generator.predict(z, t) for z in z_L]
        pairs = zip(z_L, predictions, strict=True)
        z_H = [generator.restored(z, prediction, t, settings.formula) for z, prediction in pairs]
        if self.plan.merge:
            self._merge(generator, settings, z_L[0], predictions[0])
        self._restore_photo(generator, settings)
        return z_L, z_H, [generator.decode(z) for z in z_H]

    def _merge(self, generator: Generator, settings: StageSettings, z_L: Tensor, prediction: Tensor) -> None:
        """Merge the adapters, and compare with what the first tile was with them attached."""
        merge_adapter(generator.unet)
        merged = generator.predict(z_L, settings.timestep)
        self.report.relative(MERGED, settings.name, merged, prediction)
        if settings.encoder != BASE_ENCODER:
            merge_adapter(generator.vae)
            self.report.relative(MERGED, settings.encoder, generator.encode(self.now[0]), z_L)

    def _restore_photo(self, generator: Generator, settings: StageSettings) -> None:
        """The photograph through the generator, for what the bundle will make of it; and the seams."""

        def latent(x: Tensor) -> Tensor:
            z_L = generator.encode(x)
            prediction = generator.predict(z_L, settings.timestep)
            return generator.restored(z_L, prediction, settings.timestep, settings.formula)

        def restore(x: Tensor) -> Tensor:
            return generator.decode(latent(x))

        if self.light is not None:
            self.light.through(latent)
        self.trip.through(restore)
        self.seams.through(restore, settings.name, self.report)

    def _encoder(self, generator: Generator, settings: StageSettings) -> Part:
        if settings.encoder == BASE_ENCODER:
            return self.encoder
        return Part(settings.encoder, encoder_graph(generator.vae), ("image", "z_L"), self.plan.precision)

    def _halve(self, parts: tuple[Part, Part, Part], expected: list[Tensor], subject: str) -> list[Tensor]:
        """The gate half_vs_float32, with more float32 islands where it fails; what it was measured of."""
        if self.plan.precision == "fp32":
            return self.halved
        halved = self._in_half(parts)
        for _ in range(HALF_RETRIES):
            if _decibels(halved, expected) >= float(HALF.limit or 0):
                break
            part = max(parts, key=lambda p: p.candidate()[0])
            part.keep_in_float32(part.candidate()[1])
            kept = _named(part.islands)
            self.notify(f"{subject}: half is not exact enough; {part.name} keeps {kept} in float32")
            halved = self._in_half(parts)
        self.report.psnr(HALF, subject, torch.cat(halved), torch.cat(expected), span=2)
        return halved

    def _in_half(self, parts: tuple[Part, Part, Part]) -> list[Tensor]:
        images = []
        for x in self.halved:
            for part in parts:
                x = part.run(x)
            images.append(x.clamp(-1, 1))
        return images

    def _write(self, part: Part) -> None:
        """Export one part for every shape, compare, and forget it."""
        self.notify(f"{part.name}: exporting in {self.plan.precision}")
        if part.islands:
            for line in _kept(part.islands):
                self.notify(f"{part.name}: {line}")
            self.islands[part.name] = part.islands.as_json()
        examples = {shape: self._example(part, shape) for shape in self.plan.shapes}
        self.graphs[part.name] = write_graphs(part, self.folder / part.name, examples, self.report)

    def _example(self, part: Part, shape: Shape) -> tuple[Tensor, Tensor]:
        """An input of a part in a shape, and what the float32 module makes of it."""
        x = self.tiles[0] if shape.tile == self.plan.tile else synthetic_tile(shape.tile)
        x = torch.cat([x.roll(8 * index, -1) for index in range(shape.batch)])
        if part.ports[0] != "image":
            x = self.base.encode(x)
        return x, part.module(x)

    def _announce(self, settings: StageSettings) -> None:
        self.notify(
            f"{settings.name}: {settings.layout} adapter, timestep {settings.timestep}, factor "
            f"{settings.factor} ({settings.reason}); rank {settings.rank}, formula {settings.formula}"
        )
        if settings.encoder != BASE_ENCODER:
            self.notify(f"{settings.name}: the adapter changes the VAE's encoder: {settings.encoder}")
        if settings.note:
            self.notify(f"{settings.name}: {settings.note}")
        if settings.prompt_sha256 not in (None, settings.used_prompt_sha256):
            self.notify(
                f"{settings.name}: the prompt embedding differs from the one that it was trained with; "
                "text encoders round differently on another machine or version"
            )


def _decibels(halved: list[Tensor], expected: list[Tensor]) -> float:
    """PSNR of the tiles; -1 where any value is NaN."""
    found = psnr_db(torch.cat(halved), torch.cat(expected), span=2)
    return IDENTICAL_DB if found is None else -1 if math.isnan(found) else found


def _kept(islands: Islands) -> Iterator[str]:
    """What is not half, in lines."""
    for name in sorted(islands.bfloat16):
        yield f"{name} is bfloat16, since half cannot hold its values"
    if islands.blocks or islands.attention:
        yield f"{_named(islands)} stays in float32"


def _named(islands: Islands) -> str:
    names = sorted(islands.blocks | islands.attention)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
