"""Command lines that are refused, which `--json` tells on stdout, too."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.runtime.conftest import Tudsr


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photo.png"


@pytest.mark.parametrize(
    "arguments", [("--width", "0"), ("--nope",), ("--on-exists", "maybe"), ("--scale", "x"), ("",)]
)
def test_what_the_parser_refuses_is_an_object_too(
    tudsr: Tudsr, photo: Path, arguments: tuple[str, ...]
) -> None:
    result = tudsr("upscale", photo, *arguments, "--json")
    assert result.code == 2
    (record,) = result.records
    assert record["status"] == "failed"
    assert record["error"]["exit_code"] == 2
    assert record["error"]["message"] in " ".join(result.err.split())
    assert tudsr("upscale", photo, *arguments).out == ""


def test_an_empty_name_is_not_the_folder_where_one_stands(tudsr: Tudsr, photo: Path) -> None:
    result = tudsr("upscale", "")
    assert (result.code, result.out) == (2, "")
    assert "empty name" in result.err
    assert [path.name for path in photo.parent.iterdir()] == ["photo.png"]


@pytest.mark.parametrize("word", ["skip", "rename"])
def test_overwrite_and_its_contrary_are_refused(tudsr: Tudsr, photo: Path, word: str) -> None:
    photo.with_name("photo_x8.png").write_bytes(b"the user's own")
    result = tudsr("upscale", photo, "--overwrite", "--on-exists", word)
    assert result.code == 2
    assert f"--on-exists {word} contradict" in result.err
    assert photo.with_name("photo_x8.png").read_bytes() == b"the user's own"
