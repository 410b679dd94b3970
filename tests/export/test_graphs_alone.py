"""A bundle to time with: the exporter's graphs, without its gates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.export_full import graphs_alone
from tudsr_runtime import Upscaler, open_bundle


@pytest.mark.thorough
def test_a_bundle_without_gates_is_one_that_runs(tmp_path: Path) -> None:
    graphs_alone(tmp_path, "fp16", "tiny")
    bundle = open_bundle(tmp_path / "bundle")
    manifest = bundle.manifest
    assert (manifest.golden, manifest.overlap, manifest.numerics) == (None, 80, {})
    first, second = (manifest.components[stage.unet].variants for stage in manifest.stages)
    assert [one.files[-1].sha256 for one in first] == [one.files[-1].sha256 for one in second]
    assert [one.precision for one in first] == ["fp16", "fp32"]
    with Upscaler(bundle, "onnxruntime", "cpu", sanity=False) as upscaler:
        assert upscaler.upscale(np.zeros((8, 8, 3), np.uint8), 4).shape == (32, 32, 3)
