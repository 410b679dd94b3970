"""The gates: what was merged, folded and exported must compute what the generator computes.

    merged_vs_lora    the UNet's prediction, merged against with the adapter attached       relative, float32
    baked_vs_merged   each exported module in torch against the generator                   relative, float32
    onnx_vs_torch     each ONNX graph in ONNX Runtime against the generator in float32      absolute; gated for fp32
    picture           one tile through all graphs of all stages against the generator      absolute, pixels in [0, 1]

Relative means the largest difference over the reference's largest value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tudsr_runtime.errors import NotFiniteError

Floats = NDArray[np.floating[Any]]

MERGED_LIMIT = 1e-5
BAKED_LIMIT = 1e-5
ONNX_LIMIT = 1e-4
PICTURE_LIMIT = 1 / 255


@dataclass(frozen=True)
class Measurement:
    """One comparison. `limit` None means that it is reported, not gated."""

    gate: str
    subject: str
    error: float
    limit: float | None
    psnr_db: float | None = None
    """Against the reference's own range; None where there is no difference, or it was not asked for."""


@dataclass
class Report:
    """All measurements of an export, in order; the first that fails its limit ends it."""

    measurements: list[Measurement] = field(default_factory=list)

    def add(self, measurement: Measurement) -> None:
        """Keep the measurement. Raises NotFiniteError (exit 9) where it is above its limit."""
        self.measurements.append(measurement)
        if measurement.limit is not None and not measurement.error <= measurement.limit:
            raise NotFiniteError(
                f"{measurement.gate}, {measurement.subject}: the error is {measurement.error:.2e}, "
                f"the limit {measurement.limit:.2e}; nothing is published",
                hint="--precision fp32" if measurement.gate == "picture" else None,
            )

    def as_json(self) -> dict[str, Any]:
        """For `numerics` of bundle.json: per gate its limit and, per subject, the figures."""
        gates: dict[str, Any] = {}
        for m in self.measurements:
            gate = gates.setdefault(m.gate, {"limit": m.limit})
            gate[m.subject] = {"error": m.error, "psnr_db": m.psnr_db}
        return gates


def require_finite(values: Tensor | Floats, subject: str) -> None:
    """Raises NotFiniteError naming `subject` and how many of its values are NaN or infinite."""
    bad = int((~torch.isfinite(torch.as_tensor(values))).sum())
    if bad:
        raise NotFiniteError(f"{subject}: {bad} of {math.prod(values.shape)} values are NaN or infinite")


def relative_error(actual: Tensor, reference: Tensor) -> float:
    """max |actual - reference| / max |reference|; the plain difference where the reference is zero."""
    scale = float(reference.abs().max())
    return float((actual - reference).abs().max()) / (scale or 1.0)


def compare_relative(gate: str, subject: str, actual: Tensor, reference: Tensor, limit: float) -> Measurement:
    """Relative error of `actual`. Raises NotFiniteError where it is not finite."""
    require_finite(actual, f"{gate}, {subject}")
    return Measurement(gate, subject, relative_error(actual, reference), limit)


def compare_absolute(
    gate: str, subject: str, actual: Tensor, reference: Tensor, limit: float | None
) -> Measurement:
    """Largest difference and PSNR of `actual`. Raises NotFiniteError where it is not finite."""
    require_finite(actual, f"{gate}, {subject}")
    difference = actual.double() - reference.double()
    mean_square = float((difference**2).mean())
    span = float(reference.max() - reference.min())
    psnr = 10 * math.log10(span**2 / mean_square) if mean_square and span else None
    return Measurement(gate, subject, float(difference.abs().max()), limit, psnr)


def run_onnx(model: Path, values: Tensor) -> Tensor:
    """Output of a one-input graph in ONNX Runtime on the CPU, as float32; the input is cast to the graph's type."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0]
    dtype = np.float16 if port.type == "tensor(float16)" else np.float32
    (output,) = session.run(None, {port.name: values.numpy().astype(dtype)})
    return torch.from_numpy(output.astype(np.float32))
