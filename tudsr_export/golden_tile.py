"""The golden tile: what the machine that will run the bundle checks itself with (`tudsr bundle verify`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from tudsr_export.bundle_writer import bundle_file
from tudsr_runtime.golden_tile import centre
from tudsr_runtime.manifest import Golden

GOLDEN = "golden"


def write_golden(folder: Path, tile: Tensor, outputs: list[Tensor], light: Sequence[Tensor] = ()) -> Golden:
    """Write the tile, (1, 3, T, T) in [-1, 1] of whole levels, and the centre of every stage's output;
    `light` are those with a light decoder.

    Returns how the manifest lists them.
    """
    place = folder / GOLDEN
    place.mkdir()
    levels = ((tile[0].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    picture = place / "input.png"
    Image.fromarray(levels).save(picture, optimize=True)
    files = []
    for kind, pictures in (("", outputs), ("_light", light)):
        for number, output in enumerate(pictures, 1):
            files.append(place / f"stage{number}{kind}.f32")
            files[-1].write_bytes(centre(output.numpy()).astype("<f4").tobytes())
    listed = tuple(bundle_file(file, folder) for file in files)
    return Golden(bundle_file(picture, folder), listed[: len(outputs)], listed[len(outputs) :])
