"""Small files that would be large or slow once they are decoded: refused by what their header says."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.runtime.conftest import Tudsr
from tests.runtime.pictures import hostile
from tudsr_runtime.errors import InputError
from tudsr_runtime.pictures import read
from tudsr_runtime.pictures.containers import jpeg_scans
from tudsr_runtime.pictures.read import MAX_SCANS, read_header, read_picture

BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "g4 of many rows": ("tif", lambda: hostile.group_4(2000, 60_000), "2000 x 60000 are 120 megapixels"),
    "g4 of many columns": ("tif", lambda: hostile.group_4(60_000, 2000), "60000 x 2000 are 120 megapixels"),
    "png": ("png", lambda: hostile.announced(hostile.white("PNG"), 20_000, 20_000), "are 400 megapixels"),
    "scans": ("jpg", lambda: hostile.scans(3000), "a JPEG of 3010 scans"),
    "baseline scans": ("jpg", lambda: hostile.scans(3000, progressive=False), "a JPEG of 3001 scans"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_anything_is_decoded(
    tudsr: Tudsr, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    suffix, make, said = BOMBS[name]
    monkeypatch.setattr(read, "read_picture", lambda *_: pytest.fail("decoded"))
    path = tmp_path / f"bomb.{suffix}"
    path.write_bytes(make())
    assert path.stat().st_size < 100_000
    result = tudsr("upscale", path, "--scale", "1")
    assert (result.code, result.out) == (3, "")
    assert said in result.err


def test_the_limit_of_an_input_can_be_raised_beyond_pillow_s(tmp_path: Path) -> None:
    """Pillow refuses from 179 megapixels on, wherever its own limit stands."""
    path = tmp_path / "large.tif"
    path.write_bytes(hostile.group_4(20_000, 10_000))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InputError, match="200 megapixels; the limit of an input is 100") as caught:
        read_header(path)
    assert caught.value.hint == "--max-input-megapixels 200"
    header = read_header(path, 200)
    assert (header.width, header.height) == (20_000, 10_000)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("progressive", [True, False])
def test_scans_are_counted_as_a_decoder_sees_them(tmp_path: Path, progressive: bool) -> None:
    whole = hostile.scans(0, progressive)
    own = jpeg_scans(whole)
    assert own == (10 if progressive else 1)
    # What stands behind the end, and in a thumbnail within a segment, is not decoded.
    thumbnail = hostile.scans(5)
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    assert jpeg_scans(whole + thumbnail) == own
    assert jpeg_scans(whole[:2] + segment + whole[2:]) == own
    path = tmp_path / "allowed.jpg"
    path.write_bytes(hostile.scans(MAX_SCANS - own) if progressive else whole)
    assert read_picture(read_header(path)).width == hostile.WIDTH


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_the_memory_of_decoding_grows_with_the_pixels(tmp_path: Path, kind: str, mode: str) -> None:
    path = tmp_path / "picture"
    try:
        hostile.picture(mode).save(path, kind)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"{kind} does not hold {mode}")
    header = read_header(path)
    picture = read_picture(header)
    alpha = 0 if picture.alpha is None else picture.alpha.nbytes
    pixels = header.width * header.height
    assert header.pixel_bytes * pixels >= picture.levels.nbytes + alpha
    assert header.decoding_bytes >= header.pixel_bytes * pixels


def damaged_tiff() -> bytes:
    """Deflate that ends early: libtiff complains of it on stderr by itself."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "TIFF", compression="tiff_adobe_deflate")
    data = bytearray(file.getvalue())
    with Image.open(io.BytesIO(data)) as image:
        (offset, *_), (length, *_) = image.tag_v2[273], image.tag_v2[279]  # type: ignore[attr-defined]
    data[offset + 2 : offset + length] = os.urandom(length - 2)
    return bytes(data)


def test_what_libtiff_shows_does_not_reach_the_terminal(
    tudsr: Tudsr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "damaged.tif").write_bytes(damaged_tiff())
    hidden = tudsr("upscale", tmp_path / "damaged.tif")
    assert hidden.code == 3
    assert all(
        line.startswith(("error: ", "note: ", "Try: ", "test, with ")) for line in hidden.err.splitlines()
    )
    monkeypatch.setenv("TUDSR_DEBUG", "1")
    assert "Decod" in tudsr("upscale", tmp_path / "damaged.tif").err.partition("Traceback")[0]
