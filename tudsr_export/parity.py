"""The gates: what was merged, folded and exported must compute what the generator computes.

    merged_vs_lora    the UNet's prediction, adapter merged against adapter attached; relative, float32
    baked_vs_merged   each module that is exported, in torch, against the generator; relative, float32
    fp16_range        largest value inside each module in float32, which half must hold; for fp16 only
    onnx_vs_torch     each graph in ONNX Runtime against the generator in float32; absolute, no limit for fp16
    picture           one tile through all graphs against the generator; root mean square, pixels in [0, 1]

Relative means the largest difference over the reference's largest value; absolute, the largest difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tudsr_runtime.errors import NotFiniteError


@dataclass(frozen=True)
class Gate:
    """A kind of measurement and the largest figure that passes; `limit` None reports without judging."""

    name: str
    limit: float | None


MERGED = Gate("merged_vs_lora", 1e-5)
BAKED = Gate("baked_vs_merged", 1e-5)
# ONNX Runtime's CPU kernels compute half graphs in float32, so an overflow would first show on a GPU. Half of
# float16's 65504, because other pictures may reach further than the one measured.
FP16_RANGE = Gate("fp16_range", 65504 / 2)
ONNX = {"fp32": Gate("onnx_vs_torch", 1e-4), "fp16": Gate("onnx_vs_torch", None)}
# A grey level, but not of the worst pixel: in a decoder as large as Stable Diffusion's, half's rounding puts
# one pixel of a million several levels off in a picture that is right to a quarter of a level (61 dB).
PICTURE = Gate("picture", 1 / 255)


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


@dataclass
class Report:
    """All measurements of an export, in order. The first that fails its gate ends the export."""

    measurements: list[Measurement] = field(default_factory=list)

    def relative(self, gate: Gate, subject: str, actual: Tensor, reference: Tensor) -> None:
        """Measure max |actual - reference| / max |reference|; the plain difference where that is zero."""
        require_finite(actual, f"{gate.name}, {subject}")
        scale = float(reference.abs().max()) or 1.0
        self.add(Measurement(gate, subject, float((actual - reference).abs().max()) / scale))

    def absolute(self, gate: Gate, subject: str, actual: Tensor, reference: Tensor) -> None:
        """Measure max |actual - reference|, and the PSNR."""
        require_finite(actual, f"{gate.name}, {subject}")
        largest = float((actual - reference).abs().max())
        self.add(Measurement(gate, subject, largest, psnr_db(actual, reference)))

    def root_mean_square(self, gate: Gate, subject: str, actual: Tensor, reference: Tensor) -> None:
        """Measure sqrt(mean((actual - reference)^2)), the PSNR and the largest difference."""
        require_finite(actual, f"{gate.name}, {subject}")
        difference = actual - reference
        value, largest = float(difference.square().mean().sqrt()), float(difference.abs().max())
        self.add(Measurement(gate, subject, value, psnr_db(actual, reference), largest))

    def add(self, measurement: Measurement) -> None:
        """Keep a measurement. Raises NotFiniteError (exit 9) where it is above its gate's limit."""
        self.measurements.append(measurement)
        gate = measurement.gate
        if gate.limit is not None and not measurement.value <= gate.limit:
            raise NotFiniteError(
                f"{gate.name}, {measurement.subject}: {measurement.value:.2e} is above the limit of "
                f"{gate.limit:.2e}; nothing is published",
                hint="--precision fp32" if gate in (FP16_RANGE, PICTURE) else None,
            )

    def as_json(self) -> dict[str, Any]:
        """For `numerics` of bundle.json: by gate, then by subject; `limit` stands beside the subjects."""
        gates: dict[str, Any] = {}
        for m in self.measurements:
            figures = {"value": m.value, "psnr_db": m.psnr_db, "largest": m.largest}
            figures = {key: _rounded(figure) for key, figure in figures.items() if figure is not None}
            gates.setdefault(m.gate.name, {"limit": m.gate.limit})[m.subject] = figures
        return gates


def _rounded(value: float) -> float:
    """Three significant digits: what is beyond them changes with the number of threads."""
    return float(f"{value:.3g}")


def psnr_db(actual: Tensor, reference: Tensor) -> float | None:
    """PSNR in dB against the range of `reference`; None where it is infinite, or the reference is flat."""
    mean_square = float((actual.double() - reference.double()).square().mean())
    span = float(reference.max() - reference.min())
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
