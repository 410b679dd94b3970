"""A photograph through the finished bundle and tudsr's own runtime, against the generator in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tudsr_export.calibration import network_photo, runtime_photo
from tudsr_export.gates import RUNTIME, Report
from tudsr_runtime.planes import FloatArray
from tudsr_runtime.tiling.axis import OVERLAP
from tudsr_runtime.tiling.plan import plan_upscale
from tudsr_runtime.tiling.stages import run_stages
from tudsr_runtime.upscaler import Upscaler

SCALES = {1: 4.0, 2: 8.0}
"""Scale of the photograph that goes through, by the number of stages."""


class RoundTrip:
    """The photograph, and what the generator has made of it in the stages so far.

    Tiling and blending are the runtime's on both sides; what is compared is what the back end, the graphs
    and the manifest make of the tiles.
    """

    def __init__(self, tile: int, stages: int, factor: int | None = None) -> None:
        """`tile` is the bundle's own size, to which both sides keep; `factor` that of a network, which is run
        once."""
        self._tile, self._overlap = tile, min(OVERLAP, tile // 2)
        self._photo = network_photo(tile // factor) if factor else runtime_photo(tile)
        height, width = self._photo.shape[:2]
        plan = plan_upscale(
            width,
            height,
            factor or SCALES[stages],
            stages=stages,
            tile=tile,
            overlap=self._overlap,
            own=(factor,) if factor else (),
        )
        self._factors, self._left = plan.notation, list(plan.stages)
        self._now: FloatArray = np.ascontiguousarray(self._photo.transpose(2, 0, 1) * 2 - 1)

    def through(self, restore: Callable[[Tensor], Tensor]) -> None:
        """Send the picture through the next stage; `restore` maps a tile (1, 3, T, T) to what the
        stage makes of it."""

        def run(tile: FloatArray) -> FloatArray:
            result: FloatArray = restore(torch.from_numpy(tile)).numpy()
            return result

        self._now = np.concatenate(
            list(run_stages(self._now, [self._left.pop(0)], [run], sanity=False)), axis=1
        )

    def compare(self, bundle: Path, precision: str, report: Report) -> None:
        """The gate runtime_vs_torch. Raises what the runtime raises, and NotFiniteError where it fails."""
        with Upscaler(
            bundle,
            backend="onnxruntime",
            device="cpu",
            overlap=self._overlap,
            color="none",
            sanity=False,
            tile=self._tile,
        ) as upscaler:
            actual = upscaler.upscale(self._photo, factors=self._factors)
        expected = (self._now.transpose(1, 2, 0) + 1) / 2
        report.psnr(
            RUNTIME[precision],
            "photograph, all stages",
            torch.from_numpy(actual),
            torch.from_numpy(np.ascontiguousarray(expected)),
            span=1,
        )
