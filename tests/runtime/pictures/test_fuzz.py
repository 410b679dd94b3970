"""Damaged files of every format and mode: read, write, read again. Only clear errors, or a true picture.

TUDSR_FUZZ_CASES=50000 tries that number; TUDSR_FUZZ_SEED another set of them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runtime.pictures.hostile import Seed, damage, seeds
from tudsr_runtime.batch.job import check_output_size
from tudsr_runtime.errors import InputError, MemoryExhausted, TudsrError, UsageError
from tudsr_runtime.pictures.formats import FORMATS
from tudsr_runtime.pictures.metadata import TURNS
from tudsr_runtime.pictures.picture import Picture, from_image
from tudsr_runtime.pictures.read import read_header, read_picture
from tudsr_runtime.pictures.write import check_transparency, write_picture
from tudsr_runtime.planes import white

CASES = int(os.environ.get("TUDSR_FUZZ_CASES", "900"))
SEED = int(os.environ.get("TUDSR_FUZZ_SEED", "0"))
SEEDS = seeds()
SUFFIXES = [kind.suffixes[0] for kind in FORMATS.values()]


def write(picture: Picture, target: Path) -> tuple[str, ...]:
    """The picture "enlarged" by 1."""
    values = picture.levels / np.float32(white(picture.levels.dtype))
    bands = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    return write_picture(picture, [bands], picture.width, picture.height, target)


def through(path: Path, suffix: str) -> None:
    """Read the file, write it in another format, read that again.

    Raises:
        TudsrError: the file is refused. AssertionError: what is written is no picture of the planned size.
    """
    header = read_header(path)
    check_output_size(header, path.with_name("out.png"), header.width, header.height, 1)
    picture = read_picture(header)
    assert (picture.width, picture.height) == (header.width, header.height)
    target = path.with_name(f"out{suffix}")
    check_transparency(picture, target)
    write(picture, target)
    try:
        again = read_header(target)
        made = read_picture(again)
    except TudsrError as error:
        raise AssertionError(f"what was written cannot be read: {error}") from error
    assert (made.width, made.height, again.orientation) == (header.width, header.height, 1)
    assert not [note for note in made.notes if "damaged" in note]


def turned(seed: Seed, path: Path) -> Image.Image:
    """What is to be read: the pixels that the file was made of, or that Pillow finds in it."""
    plain = seed.pixels
    if plain is None:
        with Image.open(path) as opened:
            opened.load()
            plain = opened.copy()
    upright = plain.transpose(TURNS[seed.turn]) if seed.turn in TURNS else plain.copy()
    upright.info["icc_profile"] = plain.info.get("icc_profile")
    return upright


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", SEEDS)
def test_a_whole_file_is_read_as_it_was_made(tmp_path: Path, name: str, suffix: str) -> None:
    seed, path = SEEDS[name], tmp_path / "in"
    path.write_bytes(seed.data)
    picture = read_picture(read_header(path))
    assert not [note for note in picture.notes if "damaged" in note]
    if not picture.sixteen_bit or seed.pixels is not None:
        assert np.array_equal(picture.levels, from_image(turned(seed, path), 1).levels)
    try:
        through(path, suffix)
    except UsageError as error:
        assert "transparency" in str(error)  # noqa: PT017


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_is_a_clear_error_or_a_true_picture(tmp_path: Path, kind: str) -> None:
    names = [name for name in SEEDS if name.split()[0] == kind]
    rng = np.random.default_rng([SEED, list(FORMATS).index(kind)])
    path, read = tmp_path / "in", 0
    for case in range(CASES // len(FORMATS)):
        name = names[case % len(names)]
        suffix = SUFFIXES[int(rng.integers(0, len(SUFFIXES)))]
        path.write_bytes(damage(kind, SEEDS[name].data, rng))
        try:
            through(path, suffix)
            read += 1
        except (InputError, MemoryExhausted, UsageError) as error:
            assert str(error)  # noqa: PT017
        except Exception as error:
            keep = Path(os.environ.get("TUDSR_FUZZ_KEEP", tmp_path)) / f"{kind}-{SEED}-{case}.bin"
            keep.write_bytes(path.read_bytes())
            raise AssertionError(f"case {case} of {name} to {suffix}: kept as {keep}") from error
    # Damage that leaves nothing to read would try little.
    assert read > CASES // len(FORMATS) // 20
