"""`nano` x8 against what a person would pick instead: a true x8 by Real-ESRGAN's networks, in the same run.

    python -m benchmarks.realesrgan [--backend openvino] [--precision auto] [--rounds 3] [--bundle nano]

Real-ESRGAN (Wang et al., ICCVW 2021) is the RRDBNet of ESRGAN (Wang et al., ECCVW 2018): 23 residual-in-
residual dense blocks of 64 channels, growth 32. x4plus takes 256 x 256 to 1024 x 1024; x2plus (a pixel
unshuffle by 2 before the same network) takes that to 2048 x 2048. Both are written here from the papers, with
random weights: these take as long as trained ones. They are exported to ONNX and run by the same back end in
the same precision as `nano`. Real-ESRGAN's own program takes the whole picture in one pass unless told
otherwise: --tile 1024. By default x2plus's input is cut into squares here, without the overlap that the
program gives to its tiles, which is faster on a CPU and so favours it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from tudsr_runtime import Upscaler
from tudsr_runtime.bench.measure import describe_machine
from tudsr_runtime.engines.backend import Engine, Target
from tudsr_runtime.engines.select import open_backend
from tudsr_runtime.files import file_sha256
from tudsr_runtime.manifest import BundleFile, TensorSpec, Variant

BARS = (3.5, 1.5)


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the block's input and all results before it."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        outputs = [growth] * 4 + [channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + i * growth, out, 3, padding=1) for i, out in enumerate(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for conv in self.convs[:-1]:
            seen.append(F.leaky_relu(conv(torch.cat(seen, 1)), 0.2))
        return x + 0.2 * self.convs[-1](torch.cat(seen, 1))


class RRDBNet(nn.Module):
    """x4 network; with `unshuffle` 2 it works on a half-size input and so enlarges by 2."""

    def __init__(self, unshuffle: int = 1, channels: int = 64, growth: int = 32, blocks: int = 23) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.first = nn.Conv2d(3 * unshuffle**2, channels, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(*(DenseBlock(channels, growth) for _ in range(3))) for _ in range(blocks)
        )
        self.after = nn.Conv2d(channels, channels, 3, padding=1)
        self.up = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.high = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.pixel_unshuffle(x, self.unshuffle))
        y = x
        for block in self.body:
            y = y + 0.2 * block(y)
        x = x + self.after(y)
        for conv in self.up:
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        result: Tensor = self.last(F.leaky_relu(self.high(x), 0.2))
        return result


def load(network: nn.Module, side: int, factor: int, folder: Path, backend: str, target: Target) -> Engine:
    """The network as an engine of `backend` for side x side inputs."""
    path = folder / f"x{factor}_{side}.onnx"
    shapes = (1, 3, side, side), (1, 3, side * factor, side * factor)
    with torch.no_grad():
        torch.onnx.export(
            network.eval(), (torch.zeros(shapes[0]),), path, input_names=["x"], output_names=["y"],
            dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
    file = BundleFile(path.name, file_sha256(path), path.stat().st_size)
    ends = TensorSpec("x", "float32", shapes[0]), TensorSpec("y", "float32", shapes[1])
    return open_backend(backend).load(
        path, Variant(path.name, (file,), 1, side, "fp32", 22, *((e,) for e in ends)), target
    )


def tiled(engine: Engine, x: NDArray[np.float32], tile: int, factor: int) -> NDArray[np.float32]:
    """`engine` over squares of `tile` px side by side."""
    side = x.shape[-1]
    out = np.empty((1, 3, side * factor, side * factor), np.float32)
    for top in range(0, side, tile):
        for left in range(0, side, tile):
            piece = engine.run(x[:, :, top : top + tile, left : left + tile])
            out[:, :, top * factor : (top + tile) * factor, left * factor : (left + tile) * factor] = piece
    return out


def resized(x: NDArray[np.float32], side: int) -> list[NDArray[np.float32]]:
    planes = (Image.fromarray(plane).resize((side, side), Image.Resampling.LANCZOS) for plane in x[0])
    return [np.asarray(plane) for plane in planes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tile", type=int, default=256, help="side of x2plus's pieces; 1024: in one")
    args = parser.parse_args()
    torch.manual_seed(0)
    photo = np.ascontiguousarray(data.astronaut()[:256, 128:384])
    x = (photo.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    with (
        tempfile.TemporaryDirectory() as folder,
        Upscaler(args.bundle, args.backend, "cpu", precision=args.precision) as upscaler,
    ):
        arithmetic = upscaler.choice.precision
        assert arithmetic is not None
        target = Target("cpu", arithmetic.name)
        x4 = load(RRDBNet(), 256, 4, Path(folder), args.backend, target)
        x2 = load(RRDBNet(unshuffle=2), args.tile, 2, Path(folder), args.backend, target)
        work: dict[str, Callable[[], object]] = {
            "nano x8": lambda: upscaler.upscale(photo, 8),
            "x4plus, x2plus": lambda: tiled(x2, x4.run(x), args.tile, 2),
            "x4plus, resize": lambda: resized(x4.run(x), 2048),
        }
        spent: dict[str, list[float]] = {name: [] for name in work}
        for count in range(args.rounds + 1):
            for name, one in work.items():
                started = time.perf_counter()
                one()
                if count:
                    spent[name].append(time.perf_counter() - started)
                sys.stderr.write(f"  round {count}, {name}: {time.perf_counter() - started:.2f} s\n")
        sys.stdout.write(", ".join(f"{k} {v}" for k, v in describe_machine().items()) + "\n")
        sys.stdout.write(f"{upscaler.choice}; 256 x 256 to 2048 x 2048, {args.rounds} rounds, median\n")
    medians = {name: statistics.median(found) for name, found in spent.items()}
    for name, seconds in medians.items():
        sys.stdout.write(f"  {name:<15} {seconds:7.2f} s\n")
    nano, true, cheap = medians.values()
    sys.stdout.write(
        f"nano is {true / nano:.2f} times faster than a true x8 by Real-ESRGAN (bar {BARS[0]}), "
        f"and takes {nano / cheap:.2f} x the time of x4plus with a resize behind it (bar {BARS[1]})\n"
    )


if __name__ == "__main__":
    main()
