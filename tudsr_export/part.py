"""One module on its way into the bundle: through its gates, in half with its islands, and out as ONNX."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from tudsr_export.float32_graph import write_float32_graph
from tudsr_export.float32_islands import NONE, Islands, Peaks, find_islands, next_island, run_scanned, to_half
from tudsr_export.gates import BAKED, FP16_RANGE, ONNX, Measurement, Report, run_onnx
from tudsr_export.half_arithmetic import HalfArithmetic
from tudsr_export.onnx_export import EXTERNAL_FROM, MODEL_NAME, Port, export_onnx, external_files
from tudsr_export.operations import count_macs
from tudsr_export.plan import Shape

TENSOR_DTYPES = {"fp32": "float32", "fp16": "float16"}


@dataclass(frozen=True)
class Graph:
    """One ONNX file of a component, as the manifest will list it."""

    model: str
    """File name within the component's folder."""
    files: tuple[str, ...]
    """The files beside it that it reads weights from."""
    shape: Shape
    precision: str
    ports: tuple[Port, Port]
    macs: int
    """Multiply-adds of one run."""


@dataclass
class Part:
    """A component that is being made: the float32 module, and what of it stays in float32."""

    name: str
    module: nn.Module
    ports: tuple[str, str]
    """Names of its input and output."""
    precision: str
    islands: Islands = NONE
    peaks: Peaks = field(default_factory=Peaks)
    _half: nn.Module | None = None

    def calibrate(self, tiles: list[Tensor], expected: list[Tensor], report: Report, subject: str) -> None:
        """The gates of the float32 module: it computes what the generator did, within half's range."""
        if self.precision == "fp16":
            islands, outputs, peaks = find_islands(self.module, tiles, float(FP16_RANGE.limit or 0))
        else:
            islands, (outputs, peaks) = NONE, run_scanned(self.module, tiles)
        report.relative(BAKED, subject, torch.cat(outputs), torch.cat(expected))
        if self.precision == "fp16":
            report.add(Measurement(FP16_RANGE, subject, peaks.largest))
            self.keep_in_float32(islands, peaks)

    def keep_in_float32(self, more: Islands, peaks: Peaks | None = None) -> None:
        """Keep more in float32."""
        if peaks is not None:
            self.peaks = peaks
        if self.islands | more != self.islands:
            self.islands, self._half = self.islands | more, None

    def candidate(self) -> tuple[float, Islands]:
        """What would be kept in float32 next, and its largest value; (-1, nothing) where all is."""
        return next_island(self.peaks, self.islands)

    def ports_of(self, source: Sequence[int], target: Sequence[int]) -> tuple[Port, Port]:
        """Input and output by name, of these shapes."""
        return Port(self.ports[0], tuple(source)), Port(self.ports[1], tuple(target))

    def exported(self) -> nn.Module:
        """The module in the precision of the bundle."""
        if self.precision == "fp32":
            return self.module
        if self._half is None:
            self._half = to_half(self.module, self.islands)
        return self._half

    def run(self, x: Tensor) -> Tensor:
        """The exported module, in torch; float32 in and out."""
        if self.precision == "fp32":
            return cast(Tensor, self.module(x))
        with HalfArithmetic():
            return cast(Tensor, self.exported()(x.half()).float())

    def forget_float32(self) -> None:
        """Keep only what is exported."""
        self.exported()
        if self.precision == "fp16":
            self.module = nn.Identity()

    def release(self) -> None:
        """Forget the module's weights."""
        self.module, self._half = nn.Identity(), None
        gc.collect()  # the exporter leaves cycles that hold a second copy of the weights


def write_graphs(
    part: Part,
    folder: Path,
    examples: dict[Shape, tuple[Tensor, Tensor]],
    report: Report,
) -> list[Graph]:
    """Export a part for every shape, each with an example input and its expected output, and compare.

    Shapes, weights and what is left of the part as `write_models` says.
    """
    ports = {shape: part.ports_of(x.shape, expected.shape) for shape, (x, expected) in examples.items()}
    models = write_models(part, folder, ports)
    graphs: list[Graph] = []
    for shape, graph in models.items():
        subject = f"{part.name}, {shape}" if graphs else part.name
        graphs += _compared(folder, graph, subject, *examples[shape], report)
    return graphs


def write_models(part: Part, folder: Path, ports: dict[Shape, tuple[Port, Port]]) -> dict[Shape, Graph]:
    """Export a part for every shape, with these ports, and compare nothing.

    The first shape is the bundle's own; the graphs of the others share its weights. The part's own weights
    are gone afterwards.
    """
    part.forget_float32()
    first = next(iter(ports))
    # Shared weights have to lie in a file of their own.
    external = EXTERNAL_FROM["fp16"] if len(ports) > 1 else None
    models = {}
    for shape, (source, target) in ports.items():
        name = _file_name(shape, first)
        model = export_onnx(
            part.exported(), folder, source, target, part.precision, external_from=external, name=name
        )
        macs = count_macs(model)
        models[shape] = Graph(name, external_files(model), shape, part.precision, (source, target), macs)
    part.release()
    return models


def _file_name(shape: Shape, first: Shape) -> str:
    """The graph's file: what differs from the first one stands in its name."""
    batch = f"_batch{shape.batch}" if shape.batch != first.batch else ""
    tile = f"_tile{shape.tile}" if shape.tile != first.tile else ""
    return f"{Path(MODEL_NAME).stem}{batch}{tile}.onnx"


def _compared(
    folder: Path, graph: Graph, subject: str, x: Tensor, expected: Tensor, report: Report
) -> list[Graph]:
    """A graph, and the float32 one over its weights where it is half; both compared in ONNX Runtime."""
    model, precision = folder / graph.model, graph.precision
    compare(report, precision, subject, run_onnx(model, x), expected)
    if precision == "fp32":
        return [graph]
    wide = widened(folder, graph)
    compare(report, precision, f"{subject}, in fp32", run_onnx(folder / wide.model, x), expected)
    return [graph, wide]


def widened(folder: Path, graph: Graph) -> Graph:
    """The float32 graph over the weights of a half one, which is written beside it."""
    wide = write_float32_graph(folder / graph.model)
    return replace(graph, model=wide.name, files=external_files(wide), precision="fp32")


def compare(report: Report, precision: str, subject: str, actual: Tensor, expected: Tensor) -> None:
    """The gate onnx_vs_torch, as each precision is judged."""
    judge = report.psnr if precision == "fp16" else report.absolute
    judge(ONNX[precision], subject, actual, expected)
