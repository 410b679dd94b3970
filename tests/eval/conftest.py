"""Pictures of a small set: references, their reductions, and two methods' enlargements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

NAMES = ("astronaut", "chelsea", "coffee")
SIDE = 208


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folders HR, LR (x4 smaller), bicubic and nearest, three pictures of 208 px each."""
    for folder in ("HR", "LR", "bicubic", "nearest"):
        (tmp_path / folder).mkdir()
    for name in NAMES:
        high = Image.fromarray(np.ascontiguousarray(getattr(data, name)()[:SIDE, :SIDE]))
        low = high.reduce(4)
        high.save(tmp_path / "HR" / f"{name}.png")
        low.save(tmp_path / "LR" / f"{name}.png")
        for method in ("bicubic", "nearest"):
            large = low.resize(high.size, Image.Resampling[method.upper()])
            large.save(tmp_path / method / f"{name}_x4.png")
    return tmp_path
