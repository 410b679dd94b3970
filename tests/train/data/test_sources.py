"""Pictures from files: the same pair for a number everywhere, and one clear line for what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from tudsr_runtime.errors import TrainingError
from tudsr_train.config import PairsConfig, Stage1Config
from tudsr_train.config_file import load_config
from tudsr_train.data.degradation_nano import Degradation
from tudsr_train.data.degradation_real_esrgan import RealESRGAN
from tudsr_train.data.pairs import Softness, Task
from tudsr_train.data.picture_files import DataError, EpochOrder
from tudsr_train.data.recipes import Recipe
from tudsr_train.data.sources import QUARANTINE_FILE, Data, MixedData, training_pairs

TASK = Task(32, (4,), 32)


def _picture(path: Path, width: int = 48, height: int = 40, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(6):
        _picture(tmp_path / "photos" / ("a" if i % 2 else "b") / f"{i}.png", seed=i)
    return tmp_path / "photos"


def _pairs(
    data: Data,
    run: Path,
    task: Task = TASK,
    recipe: Recipe | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Dataset[tuple[torch.Tensor, torch.Tensor]]:
    return training_pairs(data, task, Softness(), recipe or RealESRGAN(), 3, 40, run, say)


def _folder(path: Path, **changes: object) -> Data:
    return Data(source="folder", path=(str(path),), **changes)  # type: ignore[arg-type]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than processors
@pytest.mark.parametrize("recipe", [RealESRGAN(), Degradation()])
def test_workers_do_not_change_the_data(photos: Path, tmp_path: Path, recipe: Recipe) -> None:
    pairs = _pairs(_folder(photos), tmp_path, recipe=recipe)
    alone = [pairs[number] for number in range(7)]
    loader = DataLoader(torch.utils.data.Subset(pairs, range(7)), batch_size=None, num_workers=2)
    for (x_L, x_H), (other_L, other_H) in zip(alone, loader, strict=True):
        assert torch.equal(x_L, other_L)
        assert torch.equal(x_H, other_H)


def test_a_pair_has_the_sizes_and_ranges_of_its_stage(photos: Path, tmp_path: Path) -> None:
    for task in (TASK, Task(40, (8,), 20)):
        for number in range(8):
            x_L, x_H = _pairs(_folder(photos), tmp_path, task)[number]
            assert x_L.shape == (3, task.enlarge_back_to, task.enlarge_back_to)
            assert x_H.shape == (3, task.crop, task.crop)
            assert max(x_L.abs().max(), x_H.abs().max()) <= 1


def test_every_epoch_shows_every_picture_once_in_another_order() -> None:
    order = EpochOrder(7, seed=1)
    epochs = [[order(number) for number in range(7 * e, 7 * e + 7)] for e in range(3)]
    for e, epoch in enumerate(epochs):
        assert {number for number, _ in epoch} == {e}
        assert sorted(index for _, index in epoch) == list(range(7))
    assert len({tuple(index for _, index in epoch) for epoch in epochs}) == 3
    assert EpochOrder(7, seed=1)(17) == order(17)


def test_a_list_names_files_relative_to_itself(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    (tmp_path / "list.txt").write_text("\n".join(str(f.relative_to(tmp_path)) for f in files) + "\n\n")
    listed = _pairs(Data(source="list", path=(str(tmp_path / "list.txt"),)), tmp_path)
    assert torch.equal(listed[5][1], _pairs(_folder(photos), tmp_path)[5][1])


def test_small_pictures_are_counted_and_left_out(photos: Path, tmp_path: Path) -> None:
    _picture(photos / "small.png", 31, 99)
    said: list[str] = []
    _pairs(_folder(photos), tmp_path, say=said.append)
    assert said == ["data: 6 pictures; left out 1 smaller than 32 px and 0 unreadable"]
    with pytest.raises(DataError, match="1 of 7 pictures are smaller than the crop of 32 x 32 px"):
        _pairs(_folder(photos, small_allowed=0.1), tmp_path)
    with pytest.raises(DataError, match="7 of 7 pictures are smaller"):
        _pairs(_folder(photos), tmp_path, Task(512, (4,), 512))


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        _pairs(_folder(tmp_path / "nowhere"), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in"):
        _pairs(_folder(tmp_path / "empty"), tmp_path)
    with pytest.raises(TrainingError, match="did you mean 'folder'"):
        Data(source="folders")
    with pytest.raises(TrainingError, match="says not where"):
        Data(source="folder")


def _truncate(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


@pytest.mark.usefixtures("one_thread")
def test_a_damaged_picture_is_listed_and_replaced_the_same_way_everywhere(
    photos: Path, tmp_path: Path
) -> None:
    _truncate(photos / "a" / "3.png")
    data = _folder(photos, corrupt_allowed=0.5)
    first, second = _pairs(data, tmp_path / "one"), _pairs(data, tmp_path / "two")
    pictures = [first[number][1] for number in range(12)]
    for number in (11, 4, 7, 2):
        assert torch.equal(second[number][1], pictures[number])
    (line,) = (tmp_path / "one" / QUARANTINE_FILE).read_text().splitlines()
    assert line.startswith(f"{photos / 'a' / '3.png'}\t")


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_damaged_pictures_stop_with_one_line(photos: Path, tmp_path: Path, workers: int) -> None:
    _truncate(photos / "b" / "2.png")
    loader = DataLoader(_pairs(_folder(photos), tmp_path), num_workers=workers)
    with pytest.raises(
        DataError, match=r"^1 of 6 pictures are damaged, more than 1\.0%; they are listed in"
    ) as error:
        list(loader)
    assert "Traceback" not in str(error.value)
    assert error.value.exit_code == 10


def test_files_that_are_no_pictures_count_as_damaged(photos: Path, tmp_path: Path) -> None:
    (photos / "text.png").write_text("not a picture")
    (photos / "empty.jpg").touch()
    with pytest.raises(DataError, match="of 8 pictures are damaged"):
        _pairs(_folder(photos), tmp_path / "strict")
    said: list[str] = []
    _pairs(_folder(photos, corrupt_allowed=0.25), tmp_path / "loose", say=said.append)
    assert said == ["data: 6 pictures; left out 0 smaller than 32 px and 2 unreadable"]


@pytest.mark.parametrize(("mode", "level"), [("L", 128), ("RGBA", 128), ("P", 128), ("I;16", 128 * 257)])
def test_pictures_of_other_modes_keep_their_brightness(tmp_path: Path, mode: str, level: int) -> None:
    grey = Image.fromarray(np.full((40, 40), 128, np.uint8))
    picture = Image.fromarray(np.full((40, 40), level, np.uint16)) if mode == "I;16" else grey.convert(mode)
    (tmp_path / "p").mkdir()
    picture.save(tmp_path / "p" / "x.png")
    _, x_H = _pairs(_folder(tmp_path / "p"), tmp_path)[0]
    assert torch.allclose(x_H, torch.tensor(128 / 255 * 2 - 1), atol=2 / 255)


def test_synthetic_pictures_take_the_published_degradation_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    monkeypatch.setattr("tudsr_train.data.sources.synthetic_pool", lambda *_: pool)
    x_L, x_H = _pairs(Data(), tmp_path)[1]
    assert x_L.shape == x_H.shape == (3, 32, 32)


def _config(tmp_path: Path, text: str) -> Stage1Config:
    (tmp_path / "c.yaml").write_text(text)
    return load_config(Stage1Config, tmp_path / "c.yaml", [])


def test_the_configuration_of_data_and_degradation(tmp_path: Path) -> None:
    config = _config(tmp_path, "data: {source: folder, path: photos}\n")
    assert config.data.path == ("photos",)
    assert config.degradation == RealESRGAN()
    assert _config(tmp_path, "data: {source: list, path: [a, b]}\n").data.path == ("a", "b")
    assert _config(tmp_path, "data: {count: 3, size: 64, seed: 1}\n").data.count == 3
    assert _config(tmp_path, "degradation: nano\n").degradation == Degradation()
    mild = _config(tmp_path, "degradation: {preset: seesr_mild, blur_sigma: [0.1, 1]}\n").degradation
    assert isinstance(mild, RealESRGAN)
    assert (mild.blur_sigma, mild.jpeg_range2, mild.preset) == ((0.1, 1.0), (60, 100), "seesr_mild")
    with pytest.raises(TrainingError, match="must name a preset"):
        _config(tmp_path, "degradation: {preset: mild}\n")
    with pytest.raises(TrainingError, match="did you mean 'blur_sigma2'"):
        _config(tmp_path, "degradation: {blur_sigma_2: [0, 1]}\n")


DOCUMENTED = re.findall(
    r"```yaml\n(.*?)```", (Path(__file__).parents[3] / "docs" / "data.md").read_text("utf-8"), re.DOTALL
)
OF_TEACHERS = [text for text in DOCUMENTED if "teacher:" in text]


@pytest.mark.parametrize("text", OF_TEACHERS)
def test_the_documented_pairs_of_a_teacher_are_valid(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert load_config(PairsConfig, path, []).count == 1600


@pytest.mark.parametrize("text", [text for text in DOCUMENTED if text not in OF_TEACHERS])
def test_the_documented_configurations_are_valid(tmp_path: Path, text: str) -> None:
    config = _config(tmp_path, text)
    parts = config.data.parts if isinstance(config.data, MixedData) else (config.data,)
    assert any(part.path for part in parts) or config.degradation != RealESRGAN()
