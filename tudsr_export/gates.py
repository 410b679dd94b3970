"""The gates, in their order: what was merged, folded, halved and exported must compute what was trained.

    merged_vs_lora      adapter merged against adapter attached, UNet and encoder; relative, float32
    baked_vs_merged     each module that is exported, in torch, against the generator; relative, float32
    fp16_range          largest value inside each module and of each q k^T, outside of its islands in float32
                        and bfloat16
    half_vs_float32     whole pictures in torch, all stages so far, half against float32; PSNR
    light_vs_full       pictures of a light decoder against the full one's, of the same latents; PSNR, and
                        light_vs_full_dists: DISTS, where its VGG16 is named
    onnx_vs_torch       each graph in ONNX Runtime against the generator in float32; largest error, or PSNR
    runtime_vs_torch    a photograph through the bundle and tudsr's own runtime, against the generator; PSNR
    seams               blended tiles against one tile across their seam, for two overlaps; PSNR, no limit
    tensorrt_rtx        each graph parsed and built by TensorRT for RTX, where it is installed

Relative means the largest difference over the reference's largest value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tudsr_runtime.errors import NotFiniteError


@dataclass(frozen=True)
class Gate:
    """A kind of measurement and the largest figure that passes; `least`: the smallest, of a PSNR in dB."""

    name: str
    limit: float | None
    least: bool = False
    unit: str = ""

    def passes(self, value: float) -> bool:
        """Whether a figure passes; NaN never does."""
        if self.limit is None:
            return not math.isnan(value)
        return value >= self.limit if self.least else value <= self.limit

    def as_json(self) -> dict[str, Any]:
        """What stands beside the subjects in bundle.json."""
        unit = "dB, at least" if self.least else self.unit
        return {"limit": self.limit} | ({"unit": unit} if unit else {})


MERGED = Gate("merged_vs_lora", 1e-5)
BAKED = Gate("baked_vs_merged", 1e-5)
# A quarter of float16's largest number, because other pictures may reach further than the ones measured.
FP16_RANGE = Gate("fp16_range", 65504 / 4)
# By PSNR and not by the worst pixel: in a decoder as large as Stable Diffusion's, half's rounding puts one
# pixel of a million several levels off in a picture that is right to a quarter of a level (61 dB).
HALF = Gate("half_vs_float32", 45.0, least=True)
# Stable Diffusion's autoencoder gives photographs back at 23.4 to 24.5 dB (COCO 2017 at 256 px, by the model
# card of stabilityai/sd-vae-ft-mse), and restorers that people call good are 0.06 of dists[hed] from them
# (benchmarks/results/rivals.md).
LIGHT = Gate("light_vs_full", 30.0, least=True)
LIGHT_DISTS = Gate("light_vs_full_dists", 0.05)
ONNX = {"fp32": Gate("onnx_vs_torch", 1e-4), "fp16": Gate("onnx_vs_torch", 55.0, least=True)}
RUNTIME = {
    "fp32": Gate("runtime_vs_torch", 60.0, least=True),
    "fp16": Gate("runtime_vs_torch", 45.0, least=True),
}
SEAMS = Gate("seams", None, least=True)
REACH = Gate("reach", None, unit="px")
ENGINES = Gate("tensorrt_rtx", None, unit="MB of activations")
HINTS = {
    **dict.fromkeys((FP16_RANGE.name, HALF.name), "--precision fp32"),
    **dict.fromkeys(
        (LIGHT.name, LIGHT_DISTS.name), "train it longer or wider (docs/light-decoder.md), or leave it out"
    ),
}
"""What may help where a gate fails."""
IDENTICAL_DB = 200.0
"""The PSNR of equal pictures, which has no finite value."""


@dataclass(frozen=True)
class Measurement:
    """One figure, and what else is known: PSNR against the reference's own range, the largest difference."""

    gate: Gate
    subject: str
    value: float
    psnr_db: float | None = None
    """None where it is infinite, or does not apply."""
    largest: float | None = None
    """None where `value` is the largest difference itself, or it does not apply."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else bundle.json says of it."""


@dataclass
class Report:
    """All measurements of an export, in order. The first that fails its gate ends the export."""

    measurements: list[Measurement] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    """Why a gate was not run, by gate."""

    def relative(self, gate: Gate, subject: str, actual: Tensor, reference: Tensor) -> None:
        """Measure max |actual - reference| / max |reference|; the plain difference where that is zero."""
        require_finite(actual, f"{gate.name}, {subject}")
        scale = float(reference.abs().max()) or 1.0
        self.add(Measurement(gate, subject, float((actual - reference).abs().max()) / scale))

    def absolute(self, gate: Gate, subject: str, actual: Tensor, reference: Tensor) -> None:
        """Measure max |actual - reference|, and the PSNR; over the reference's largest value where that is
        above 1, for float32 rounds in proportion."""
        require_finite(actual, f"{gate.name}, {subject}")
        largest = float((actual - reference).abs().max()) / max(1.0, float(reference.abs().max()))
        self.add(Measurement(gate, subject, largest, psnr_db(actual, reference)))

    def psnr(
        self, gate: Gate, subject: str, actual: Tensor, reference: Tensor, span: float | None = None
    ) -> None:
        """Measure the PSNR against `span` (None: the reference's own range), and the largest difference."""
        require_finite(actual, f"{gate.name}, {subject}")
        largest = float((actual - reference).abs().max())
        decibels = IDENTICAL_DB if largest == 0 else psnr_db(actual, reference, span)
        self.add(Measurement(gate, subject, math.nan if decibels is None else decibels, None, largest))

    def add(self, measurement: Measurement) -> None:
        """Keep a measurement. Raises NotFiniteError (exit 9) where it does not pass its gate."""
        self.measurements.append(measurement)
        gate = measurement.gate
        if not gate.passes(measurement.value):
            side, spec = ("below", ".1f") if gate.least else ("above", ".2e")
            limit = "any limit" if gate.limit is None else f"the limit of {gate.limit:{spec}}"
            raise NotFiniteError(
                f"{gate.name}, {measurement.subject}: {measurement.value:{spec}} is {side} {limit}; "
                "nothing is published",
                hint=HINTS.get(gate.name),
            )

    def as_json(self) -> dict[str, Any]:
        """The figures for `numerics` of bundle.json: by gate, then by subject, with `limit` beside these."""
        gates: dict[str, Any] = {}
        for m in self.measurements:
            figures = {"value": m.value, "psnr_db": m.psnr_db, "largest": m.largest}
            figures = {key: _rounded(figure) for key, figure in figures.items() if figure is not None}
            gates.setdefault(m.gate.name, m.gate.as_json())[m.subject] = figures | dict(m.facts)
        return gates | {gate: {"limit": None, "status": status} for gate, status in self.notes.items()}


def _rounded(value: float) -> float:
    """Three significant digits: what is beyond them changes with the number of threads."""
    return float(f"{value:.3g}")


def psnr_db(actual: Tensor, reference: Tensor, span: float | None = None) -> float | None:
    """PSNR in dB against `span`, else the range of `reference`; None where it is infinite or has no span."""
    mean_square = float((actual.double() - reference.double()).square().mean())
    span = float(reference.max() - reference.min()) if span is None else span
    return 10 * math.log10(span**2 / mean_square) if mean_square and span else None


def require_finite(values: Tensor, subject: str) -> None:
    """Raises NotFiniteError naming `subject` and how many of its values are NaN or infinite."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise NotFiniteError(f"{subject}: {bad} of {values.numel()} values are NaN or infinite")


def run_onnx(model: Path, values: Tensor) -> Tensor:
    """Output (float32) of a graph in ONNX Runtime on the CPU; `values` are cast to its input's type."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = (
        3  # its warnings are about optimisations that half graphs do without on a CPU
    )
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0]
    dtype = np.float16 if port.type == "tensor(float16)" else np.float32
    (output,) = session.run(None, {port.name: values.numpy().astype(dtype)})
    return torch.from_numpy(output.astype(np.float32))
