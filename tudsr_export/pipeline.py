"""The export from end to end: every stage is merged, folded, exported and compared; then all is published."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tudsr_export.bundle_writer import DECODER, ENCODER, BundleFacts, write_bundle_files
from tudsr_export.graphs import UnetStage, vae_graphs
from tudsr_export.magnitude import run_scanned
from tudsr_export.merge import StageSettings, attach_stage, merge_adapter
from tudsr_export.onnx_export import DTYPES, MODEL_NAME, Port, export_onnx
from tudsr_export.parity import BAKED, FP16_RANGE, MERGED, ONNX, PICTURE, Measurement, Report, run_onnx
from tudsr_export.widen import WIDE_NAME, widen
from tudsr_runtime.atomic import atomic_dir
from tudsr_runtime.geometry import TILE
from tudsr_train.adapters import prompt_sha256
from tudsr_train.generator import Generator, one_step
from tudsr_train.synthetic import SyntheticImages

Say = Callable[[str], None]


@dataclass(frozen=True)
class ExportPlan:
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
    about: str = ""
    """Markdown for the model card."""


def export_bundle(plan: ExportPlan, report: Report, say: Say) -> None:
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
        for stage, adapter in sorted(plan.adapters.items()):
            export.stage(stage, adapter)
        export.autoencoder()
        export.picture()
        facts = BundleFacts(
            plan.name,
            plan.licence,
            plan.tile,
            plan.precision,
            base,
            tuple(export.stages),
            export.ports,
            plan.about,
        )
        write_bundle_files(folder, facts, report.as_json())


def sample_tile(tile: int) -> Tensor:
    """A (1, 3, tile, tile) picture in [-1, 1] such as a stage sees: reduced four times and enlarged again."""
    pixels = torch.from_numpy(SyntheticImages(size=tile, num_textures=4)[0]).permute(2, 0, 1)[None]
    small = F.interpolate(pixels, scale_factor=1 / 4, mode="area")
    return F.interpolate(small, size=(tile, tile), mode="bilinear") * 2 - 1


class _Export:
    """One run.

    `z_H`, `decoded` and `reference` are what the generator, in float32, makes of the tile in the stages
    so far: the last latent, its picture, and that clamped.
    """

    def __init__(self, plan: ExportPlan, folder: Path, base: Generator, report: Report, say: Say) -> None:
        self.plan, self.folder, self.base, self.report, self.say = plan, folder, base, report, say
        self.source = self.decoded = self.reference = sample_tile(plan.tile)
        self.z_L = self.z_H = base.encode(self.source)
        self.stages: list[StageSettings] = []
        self.ports: dict[str, tuple[Port, Port]] = {}

    def stage(self, stage: int, adapter: Path) -> None:
        """Merge, fold and export one stage's UNet; the reference moves on through the stage."""
        generator, settings = attach_stage(self.base, adapter, stage)
        self._announce(settings)
        t, alpha_t = settings.timestep, self.base.alphas_cumprod[settings.timestep]
        z_L = self.base.encode(self.reference)
        with_lora = generator.predict(z_L, t)
        merge_adapter(generator.unet)
        merged = generator.predict(z_L, t)
        self.report.relative(MERGED, settings.name, merged, with_lora)

        self.z_H = one_step(z_L, with_lora, alpha_t, self.base.prediction_type)
        self.decoded = self.base.decode(self.z_H)
        self.reference = self.decoded.clamp(-1, 1)
        merged_z_H = one_step(z_L, merged, alpha_t, self.base.prediction_type)
        ports = _port("z_L", z_L), _port("z_H", merged_z_H)
        self._component(settings.unet, UnetStage(generator, t), ports, z_L, merged_z_H)
        self.stages.append(settings)

    def autoencoder(self) -> None:
        """Export encoder and decoder, which all stages share."""
        encoder, decoder = vae_graphs(self.base.vae)
        image, z_L, z_H = _port("image", self.source), _port("z_L", self.z_L), _port("z_H", self.z_H)
        self._component(ENCODER, encoder, (image, z_L), self.source, self.z_L)
        self._component(DECODER, decoder, (z_H, image), self.z_H, self.decoded)

    def picture(self) -> None:
        """The tile through all exported graphs, as the runtime chains them, against the generator."""
        self._picture("all stages", MODEL_NAME)
        if self.plan.precision == "fp16":
            self._picture("all stages, in fp32", WIDE_NAME)

    def _picture(self, subject: str, model: str) -> None:
        x = self.source
        for stage in self.stages:
            for component in (ENCODER, stage.unet, DECODER):
                x = run_onnx(self.folder / component / model, x)
            x = x.clamp(-1, 1)
        self.report.root_mean_square(PICTURE, subject, (x + 1) / 2, (self.reference + 1) / 2)

    def _announce(self, settings: StageSettings) -> None:
        self.say(
            f"{settings.name}: timestep {settings.timestep}, factor {settings.factor} ({settings.reason}); "
            f"rank {settings.rank}"
        )
        if settings.prompt_sha256 not in (None, prompt_sha256(self.base.prompt_embeds)):
            self.say(
                f"{settings.name}: the prompt embedding differs from the one that it was trained with; "
                "text encoders round differently on another machine or version"
            )

    def _component(
        self, name: str, graph: nn.Module, ports: tuple[Port, Port], values: Tensor, reference: Tensor
    ) -> None:
        """Export one graph; `values` and `reference` are its input and, by the generator, its output."""
        precision = self.plan.precision
        self.say(f"{name}: exporting in {precision}")
        baked, largest = run_scanned(graph.eval(), values)
        self.report.relative(BAKED, name, baked, reference)
        if precision == "fp16":
            self.report.add(Measurement(FP16_RANGE, name, largest))
        export_onnx(graph.to(DTYPES[precision]), self.folder / name, *ports, precision)
        gc.collect()  # the exporter leaves cycles that hold a second copy of the weights
        model = self.folder / name / MODEL_NAME
        self.report.absolute(ONNX[precision], name, run_onnx(model, values), reference)
        if precision == "fp16":
            self.report.absolute(
                ONNX[precision], f"{name}, in fp32", run_onnx(widen(model), values), reference
            )
        self.ports[name] = ports


def _port(name: str, example: Tensor) -> Port:
    return Port(name, tuple(example.shape))
