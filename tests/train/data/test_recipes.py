"""Clean reductions, mixtures of recipes and of sources: shares, draws, files, mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from tudsr_runtime.errors import TrainingError
from tudsr_train.config import BaseConfig, Stage1Config
from tudsr_train.config_file import load_config, to_yaml
from tudsr_train.data.degradation_nano import Degradation
from tudsr_train.data.degradation_real_esrgan import RealESRGAN, degrade, draw
from tudsr_train.data.pairs import Softness, Task
from tudsr_train.data.picture_files import DataError
from tudsr_train.data.recipes import CAMERA, Clean, MixedRecipe, enlarged, low_quality
from tudsr_train.data.sources import Data, MixedData, training_pairs

TASK = Task(32, (4,), 32)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("kernel", "same"), [
    ("area", Image.Resampling.BOX),
    ("bicubic", Image.Resampling.BICUBIC),
    ("lanczos", Image.Resampling.LANCZOS),
])  # fmt: skip
def test_a_clean_reduction_is_pillows_and_nothing_else(kernel: str, same: Image.Resampling) -> None:
    levels = _rng().integers(0, 256, (24, 32, 3), dtype=np.uint8)
    x_H = torch.from_numpy(levels).movedim(-1, 0).float() / 255
    low = Clean(kernels=(kernel,)).degrade(x_H, 4, _rng())
    expected = np.asarray(Image.fromarray(levels).resize((8, 6), same))
    assert np.array_equal((low * 255).round().movedim(0, -1).numpy(), expected)


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(TrainingError, match="area, bicubic, lanczos are known"):
        Clean(kernels=("sinc",))


def test_a_mixture_draws_each_recipe_by_its_weight() -> None:
    mixed = MixedRecipe((Clean(), CAMERA, Degradation()), (3.0, 1.0, 0.0))
    drawn = [mixed.draw(rng) for rng in [_rng()] for _ in range(2000)]
    assert drawn.count(mixed.parts[0]) / 2000 == pytest.approx(0.75, abs=0.05)
    assert mixed.parts[2] not in drawn


def test_a_fixed_enlargement_leaves_every_other_draw_alone() -> None:
    x_H = torch.from_numpy(_rng().random((3, 32, 32), np.float32))
    for seed in range(5):
        expected = degrade(x_H, 4, draw(RealESRGAN(), 4, _rng(seed)))
        x_L = low_quality(x_H, 4, 32, RealESRGAN(enlarge="bilinear"), _rng(seed))
        assert (x_L - enlarged(expected, 32).clamp(0, 1)).abs().max() <= 0.51 / 255
    with pytest.raises(TrainingError, match="enlarge is 'lanczos'"):
        RealESRGAN(enlarge="lanczos")


@pytest.fixture
def photos(tmp_path: Path) -> Data:
    """Six pictures, each of one colour: what a crop is of can be seen."""
    (tmp_path / "photos").mkdir()
    for i in range(6):
        Image.new("RGB", (48, 40), (40 * i,) * 3).save(tmp_path / "photos" / f"{i}.png")
    return Data(source="folder", path=(str(tmp_path / "photos"),), leave_out=("1", "4"), keep_decoded=1)


def _levels(data: Data | MixedData, run: Path, held_out: bool = False) -> list[int]:
    pairs = training_pairs(data, TASK, Softness(prob=0), Clean(), 3, 60, run, lambda _: None, held_out)
    return [round(float((x_H.mean() + 1) * 127.5) / 40) for _, x_H in Subset(pairs, range(60))]


def test_what_is_left_out_is_in_validation_and_nowhere_else(photos: Data, tmp_path: Path) -> None:
    assert {*_levels(photos, tmp_path)} == {0, 2, 3, 5}
    assert {*_levels(photos, tmp_path, held_out=True)} == {1, 4}
    with pytest.raises(DataError, match="no picture 'egg'"):
        _levels(Data(source="folder", path=photos.path, leave_out=("egg",)), tmp_path)


@pytest.mark.usefixtures("one_thread")
def test_a_mixture_of_sources_draws_by_weight_and_holds_out_photographs(
    photos: Data, pool: Data, tmp_path: Path
) -> None:
    mixed = MixedData((photos, pool), (3.0, 1.0))
    pairs = training_pairs(mixed, TASK, Softness(), Clean(), 3, 400, tmp_path, lambda _: None)
    flat = sum(float(pairs[number][1].std()) < 1e-6 for number in range(400))
    assert flat / 400 == pytest.approx(0.75, abs=0.1)
    assert {*_levels(mixed, tmp_path, held_out=True)} == {1, 4}
    again = training_pairs(mixed, TASK, Softness(), Clean(), 3, 400, tmp_path, lambda _: None)
    assert all(torch.equal(a, b) for n in (7, 3) for a, b in zip(pairs[n], again[n], strict=True))


MIXED = """
out: x
data:
  - {weight: 3, source: folder, path: here}
  - {count: 5}
degradation:
  - {weight: 0.5, preset: realesrgan, enlarge: bilinear}
  - clean
"""


@pytest.mark.parametrize("kind", [BaseConfig, Stage1Config])
def test_mixtures_are_lists_in_a_file_and_come_back_from_the_resolved_one(kind: type, tmp_path: Path) -> None:
    file = tmp_path / "mixed.yaml"
    file.write_text(MIXED)
    config = load_config(kind, file, [])
    assert config.data == MixedData((Data(source="folder", path=("here",)), Data(count=5)), (3.0, 1.0))
    assert config.degradation == MixedRecipe((RealESRGAN(enlarge="bilinear"), Clean()), (0.5, 1.0))
    file.write_text(to_yaml(config))
    assert load_config(kind, file, []) == config


@pytest.mark.parametrize(("text", "message"), [
    ("data: []", "weights must be at least 0"),
    ("data: [{weight: -1}]", "weights must be at least 0"),
    ("data: [{weight: much}]", r"data\[0\].weight must be a finite number"),
    ("data: [{weigth: 1}]", r"unknown key 'data\[0\].weigth'"),
    ("degradation: [{weight: 0, preset: clean}]", "and one above 0"),
    ("degradation: [dirty]", "must name a preset"),
])  # fmt: skip
def test_mistakes_in_a_mixture_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(TrainingError, match=message):
        load_config(Stage1Config, tmp_path / "bad.yaml", [])


def test_a_degradation_without_a_name_stands_on_its_fields_own(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("degradation: {jpeg_prob: 0.5}")
    assert load_config(BaseConfig, tmp_path / "one.yaml", []).degradation == Degradation(jpeg_prob=0.5)
    (tmp_path / "one.yaml").write_text("degradation: {sinc_prob: 0.5}")
    assert load_config(Stage1Config, tmp_path / "one.yaml", []).degradation == RealESRGAN(sinc_prob=0.5)
