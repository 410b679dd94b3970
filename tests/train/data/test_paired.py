"""Camera pairs: matched by name, cropped together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tudsr_train.data.degradation_real_esrgan import RealESRGAN
from tudsr_train.data.paired import pair_files
from tudsr_train.data.pairs import Softness, Task
from tudsr_train.data.picture_files import DataError
from tudsr_train.data.sources import Data, training_pairs


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def _scene(seed: int, factor: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(HQ, LQ): blocks of one colour, and the colours."""
    low = np.random.default_rng(seed).integers(0, 256, (20, 24, 3))
    return low.repeat(factor, 0).repeat(factor, 1), low


LAYOUTS = {
    "beside": ("all/{}_HR.png", "all/{}_LR4.png"),
    "two folders": ("HR/{}.png", "LR/{}.png"),
    "two folders, named": ("HR/cam/{}.png", "LR/cam/{}x4.png"),
    "two folders, both named": ("HR/{}_HR.png", "LR/{}_LR4.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_are_found_and_cropped_together(layout: str, tmp_path: Path) -> None:
    for seed in range(3):
        for name, pixels in zip(LAYOUTS[layout], _scene(seed), strict=True):
            _save(tmp_path / name.format(f"Canon_{seed:03}"), pixels)
    beside = layout == "beside"
    data = Data(
        source="paired",
        path=(str(tmp_path / ("all" if beside else "HR")),),
        lq_path="" if beside else str(tmp_path / "LR"),
    )
    pairs = training_pairs(data, Task(32, (4,), 8), Softness(), RealESRGAN(), 0, 9, tmp_path, lambda _: None)
    pictures = {x_H.numpy().tobytes() for _, x_H in (pairs[i] for i in range(6))}
    assert len(pictures) == 6
    for number in range(6):
        x_L, x_H = pairs[number]
        assert torch.allclose(x_L, F.interpolate(x_H[None], size=(8, 8), mode="area")[0], atol=1e-5)


def test_a_picture_without_its_partner_is_named(tmp_path: Path) -> None:
    _save(tmp_path / "a_HR.png", _scene(0)[0])
    with pytest.raises(DataError, match=r"1 of 1 HQ pictures have no LQ picture, such as .*a_HR\.png"):
        pair_files((str(tmp_path),), "")


def test_sizes_that_do_not_match_count_as_damaged(tmp_path: Path) -> None:
    high, low = _scene(0)
    _save(tmp_path / "a_HR.png", high[:-1])
    _save(tmp_path / "a_LR4.png", low)
    data = Data(source="paired", path=(str(tmp_path),))
    pairs = training_pairs(data, Task(32, (4,), 8), Softness(), RealESRGAN(), 0, 9, tmp_path, lambda _: None)
    with pytest.raises(DataError, match="1 of 1 pictures are damaged"):
        pairs[0]
    assert "96 x 79 px is no multiple of 24 x 20 px" in (tmp_path / "damaged-pictures.txt").read_text()
