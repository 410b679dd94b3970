"""The export from end to end: every stage is merged, folded, exported and compared; then the whole is published."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tudsr_export.bundle_writer import BundleFacts, ExportedStage, write_bundle_files
from tudsr_export.graphs import UnetStage, vae_graphs
from tudsr_export.merge import StageSettings, attach_stage, merge_adapter
from tudsr_export.onnx_export import DTYPES, MODEL_NAME, Port, export_onnx
from tudsr_export.parity import (
    BAKED_LIMIT,
    MERGED_LIMIT,
    ONNX_LIMIT,
    PICTURE_LIMIT,
    Report,
    compare_absolute,
    compare_relative,
    run_onnx,
)
from tudsr_runtime.atomic import atomic_dir
from tudsr_runtime.geometry import TILE
from tudsr_train.adapters import prompt_sha256
from tudsr_train.generator import Generator, one_step
from tudsr_train.synthetic import SyntheticImages

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to export, and where to."""

    base: Path
    adapters: Mapping[int, Path]
    """Adapter folder of stage 1, of stage 2, or of both."""
    output: Path
    precision: str
    """fp16 or fp32: the type of all weights, inputs and outputs."""
    name: str
    licence: str
    overwrite: bool = False
    tile: int = TILE


def export_bundle(plan: Plan, report: Report, say: Say) -> None:
    """Write the bundle `plan.output`, whole or not at all; the gates' figures are added to `report`.

    Raises:
        BundleError: the base or an adapter is missing, damaged, or they do not fit each other.
        NotFiniteError: a gate failed.
        OutputError: the bundle cannot be written there.
    """
    with atomic_dir(plan.output, plan.overwrite) as folder, torch.no_grad():
        base = Generator.load(plan.base).eval()
        say(f"base {base.base_id}, {base.prediction_type}, sha256 {base.base_sha256[:12]}")
        export = _Export(plan, folder, base, report, say)
        stages = tuple(export.stage(stage, adapter) for stage, adapter in sorted(plan.adapters.items()))
        export.autoencoder()
        export.picture()
        facts = BundleFacts(plan.name, plan.licence, plan.tile, plan.precision, base, stages, export.ports)
        write_bundle_files(folder, facts, report.as_json())


def test_picture(tile: int) -> Tensor:
    """A (1, 3, tile, tile) picture in [-1, 1] as a stage sees them: reduced four times, then enlarged again."""
    pixels = torch.from_numpy(SyntheticImages(size=tile, num_textures=4)[0]).permute(2, 0, 1)[None]
    small = F.interpolate(pixels, scale_factor=1 / 4, mode="area")
    return F.interpolate(small, size=(tile, tile), mode="bilinear") * 2 - 1


@dataclass
class _Export:
    """One run. `reference` is the picture after the stages so far, by the generator in float32, clamped."""

    plan: Plan
    folder: Path
    base: Generator
    report: Report
    say: Say
    ports: dict[str, tuple[Port, Port]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.source = self.reference = test_picture(self.plan.tile)
        self.z_L = self.base.encode(self.source)
        self.z_H = self.z_L
        edge = self.plan.tile // self.base.pixels_per_cell
        latent = (1, self.base.vae.config.latent_channels, edge, edge)
        self.image_shape, self.latent_shape = (1, 3, self.plan.tile, self.plan.tile), latent

    def stage(self, stage: int, adapter: Path) -> ExportedStage:
        """Merge, fold and export one stage's UNet; the reference picture moves on through the stage."""
        generator, settings = attach_stage(self.base, adapter, stage)
        t, component = settings.timestep, f"unet_{settings.name}"
        self._announce(settings)
        z_L = self.base.encode(self.reference)
        alpha_t = self.base.alphas_cumprod[t]
        with_lora = generator.predict(z_L, t)
        z_H = one_step(z_L, with_lora, alpha_t, self.base.prediction_type)
        merge_adapter(generator.unet)
        merged = generator.predict(z_L, t)
        self.report.add(compare_relative("merged_vs_lora", settings.name, merged, with_lora, MERGED_LIMIT))

        graph = UnetStage(generator, t).eval()
        merged_z_H = one_step(z_L, merged, alpha_t, self.base.prediction_type)
        self._check_baked(component, graph(z_L), merged_z_H)
        ports = Port("z_L", self.latent_shape), Port("z_H", self.latent_shape)
        self._component(component, graph, ports, z_L, z_H)
        self.z_H = z_H
        self.reference = self.base.decode(z_H).clamp(-1, 1)
        return ExportedStage(settings, component, float(alpha_t))

    def autoencoder(self) -> None:
        """Export encoder and decoder, which all stages share."""
        encoder, decoder = vae_graphs(self.base.vae)
        image, z_L, z_H = self.source, self.z_L, self.z_H
        decoded = self.base.decode(z_H)
        self._check_baked("vae_encoder", encoder(image), z_L)
        self._check_baked("vae_decoder", decoder(z_H), decoded)
        ports = Port("image", self.image_shape), Port("z_L", self.latent_shape)
        self._component("vae_encoder", encoder, ports, image, z_L)
        ports = Port("z_H", self.latent_shape), Port("image", self.image_shape)
        self._component("vae_decoder", decoder, ports, z_H, decoded)

    def picture(self) -> None:
        """The tile through all exported graphs, as the runtime chains them, against the generator."""
        x = self.source
        for stage in sorted(self.plan.adapters):
            for component in ("vae_encoder", f"unet_stage{stage}", "vae_decoder"):
                x = run_onnx(self.folder / component / MODEL_NAME, x)
            x = x.clamp(-1, 1)
        pixels, reference = (x + 1) / 2, (self.reference + 1) / 2
        self.report.add(compare_absolute("picture", "all stages", pixels, reference, PICTURE_LIMIT))

    def _announce(self, settings: StageSettings) -> None:
        self.say(
            f"{settings.name}: timestep {settings.timestep}, factor {settings.factor} ({settings.reason}); "
            f"rank {settings.rank}"
        )
        trained_with, here = settings.prompt_sha256, prompt_sha256(self.base.prompt_embeds)
        if trained_with not in (None, here):
            self.say(
                f"{settings.name}: the prompt embedding differs from the one that it was trained with; text encoders "
                "round differently on another machine or version"
            )

    def _check_baked(self, component: str, actual: Tensor, reference: Tensor) -> None:
        self.report.add(compare_relative("baked_vs_merged", component, actual, reference, BAKED_LIMIT))

    def _component(
        self, name: str, graph: nn.Module, ports: tuple[Port, Port], values: Tensor, reference: Tensor
    ) -> None:
        precision = self.plan.precision
        export_onnx(graph.to(DTYPES[precision]), self.folder / name, *ports, precision)
        gc.collect()  # the exporter leaves cycles that hold a second copy of the weights
        output = run_onnx(self.folder / name / MODEL_NAME, values)
        limit = ONNX_LIMIT if precision == "fp32" else None
        self.report.add(compare_absolute("onnx_vs_torch", name, output, reference, limit))
        self.ports[name] = ports
