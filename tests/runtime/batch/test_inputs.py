"""Which files are taken, what the outputs are called, and what is refused before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tudsr_runtime.batch.done import Records
from tudsr_runtime.batch.inputs import (
    Found,
    Source,
    check_name,
    find_collisions,
    find_inputs,
    make_folders,
    name_output,
    output_is_folder,
)
from tudsr_runtime.errors import OutputError, UsageError
from tudsr_runtime.pictures.read import Header


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def taken(found: Found, folder: Path) -> list[str]:
    return [source.path.relative_to(folder).as_posix() for source in found.sources]


def header(path: Path, has_alpha: bool = False, kind: str = "PNG") -> Header:
    return Header(path, kind, 4, 4, has_alpha)


def test_a_folder_gives_its_pictures_in_order_and_says_what_it_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a.png", "c.tiff", "notes.txt", ".hidden.png", "sub/d.png")
    found = find_inputs([tmp_path])
    assert taken(found, tmp_path) == ["a.png", "b.JPG", "c.tiff"]
    assert any("notes.txt" in note for note in found.notes)
    assert not any("hidden" in note for note in found.notes)


def test_recursive_searches_below_but_not_the_output_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "sub/d.png", "sub/deep/e.webp", "out/a_x8.png", ".git/x.png")
    found = find_inputs([tmp_path], recursive=True, output=tmp_path / "out")
    assert taken(found, tmp_path) == ["a.png", "sub/d.png", "sub/deep/e.webp"]


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.png")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert taken(find_inputs([tmp_path], recursive=True), tmp_path) == ["sub/a.png"]


def test_earlier_results_are_left_out_beside_their_input_only(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "a_x8.png", "renamed.png", "lonely_x4.png")
    kept = Records()[tmp_path]
    for name in ("a_x8.png", "renamed.png"):
        kept.add("a.jpg", "0" * 64, {}, tmp_path / name)
    kept.add("elsewhere.jpg", "0" * 64, {}, tmp_path / "lonely_x4.png")
    found = find_inputs([tmp_path])
    assert taken(found, tmp_path) == ["a.jpg", "lonely_x4.png"]
    assert any("a_x8.png, renamed.png, earlier results" in note for note in found.notes)
    assert taken(find_inputs([tmp_path / "a_x8.png"]), tmp_path) == ["a_x8.png"]


def test_a_name_like_that_of_a_result_makes_none(tmp_path: Path) -> None:
    mine = ["icon.png", "icon_x2.png", "wall.jpg", "wall_1920x1080.jpg"]
    touch(tmp_path, *mine)
    found = find_inputs([tmp_path])
    assert taken(found, tmp_path) == mine
    assert any("icon_x2.png, wall_1920x1080.jpg: named like a result" in note for note in found.notes)


def test_a_file_named_twice_is_taken_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    found = find_inputs([tmp_path / "b.png", tmp_path, tmp_path / "b.png"])
    assert taken(found, tmp_path) == ["b.png", "a.png"]


def test_a_folder_without_pictures_is_an_error_that_tells_of_r(tmp_path: Path) -> None:
    touch(tmp_path, "sub/a.png")
    ((path, error),) = find_inputs([tmp_path]).unreadable
    assert path == tmp_path
    assert "-r" in str(error.hint)


@pytest.mark.parametrize(
    ("name", "kind", "scale", "expected"),
    [
        ("photo.png", "PNG", 8.0, "photo_x8.png"),
        ("photo.JPG", "JPEG", 2.5, "photo_x2.5.JPG"),
        ("photo.jfif", "JPEG", 8.0, "photo_x8.jfif"),
        ("photo.JPE", "JPEG", 8.0, "photo_x8.JPE"),
        ("photo.mpo", "JPEG", 8.0, "photo_x8.jpg"),
        ("photo.tif", "TIFF", 8.0, "photo_x8.tif"),
        ("scan.TIFF", "TIFF", 8.0, "scan_x8.TIFF"),
        ("scan.dng", "TIFF", 8.0, "scan_x8.tif"),
        ("icon.dib", "BMP", 8.0, "icon_x8.dib"),
        ("still.avifs", "AVIF", 8.0, "still_x8.avif"),
        ("still.apng", "PNG", 8.0, "still_x8.png"),
        ("photo.gif", "PNG", 16.0, "photo_x16.png"),
        ("über 写真 🖼.webp", "WEBP", 8.0, "über 写真 🖼_x8.webp"),
        ("two.dots.png", "PNG", 8.0, "two.dots_x8.png"),
        ("-dash.png", "PNG", 8.0, "-dash_x8.png"),
        ("without", "WEBP", 8.0, "without_x8.webp"),
    ],
)
def test_names(name: str, kind: str, scale: float, expected: str) -> None:
    source = Source(Path("dir") / name)
    named = name_output(source, header(source.path, kind=kind), f"x{scale:g}", None)
    assert named == (Path("dir") / expected, None)


@pytest.mark.parametrize(
    ("name", "kind", "expected"), [("a.jpg", "PNG", "a_x8.png"), ("a.PNG", "JPEG", "a_x8.jpg")]
)
def test_the_content_and_not_the_name_says_the_format_of_the_result(
    name: str, kind: str, expected: str
) -> None:
    target, note = name_output(Source(Path(name)), header(Path(name), kind=kind), "x8", None)
    assert target == Path(expected)
    assert note is not None
    assert kind in note


@pytest.mark.parametrize("kind", ["JPEG", "BMP"])
def test_a_transparent_picture_of_a_format_without_becomes_png_and_says_so(kind: str) -> None:
    source = Source(Path("logo"))
    target, note = name_output(source, header(source.path, has_alpha=True, kind=kind), "x8", None)
    assert target == Path("logo_x8.png")
    assert note is not None


def test_an_output_folder_keeps_the_structure(tmp_path: Path) -> None:
    source = Source(tmp_path / "in" / "a" / "b.png", folder=tmp_path / "in")
    target, _ = name_output(source, header(source.path), "x8", tmp_path / "out")
    assert target == tmp_path / "out" / "a" / "b_x8.png"


def test_what_o_means(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    one, both = [tmp_path / "a.png"], [tmp_path / "a.png", tmp_path / "b.png"]
    assert output_is_folder(tmp_path, one)
    assert output_is_folder(tmp_path / "new", one)
    assert output_is_folder(tmp_path / "new", both)
    assert output_is_folder(tmp_path / "new", [tmp_path])
    assert not output_is_folder(tmp_path / "out.webp", one)
    with pytest.raises(UsageError, match="several inputs"):
        output_is_folder(tmp_path / "out.png", both)
    with pytest.raises(UsageError, match=r"cannot write \.gif"):
        output_is_folder(tmp_path / "out.gif", one)


def test_two_inputs_for_one_output_are_named_and_both_refused() -> None:
    pairs = [
        (Path("a.png"), Path("a_x8.png")),
        (Path("b.png"), Path("b_x8.png")),
        (Path("a.bmp"), Path("./a_x8.png")),
    ]
    refused = find_collisions(pairs, [source for source, _ in pairs])
    assert set(refused) == {Path("a.png"), Path("a.bmp")}
    assert "a.png and a.bmp would both be written to a_x8.png" in str(refused[Path("a.png")])


def test_an_input_is_never_an_output(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    refused = find_collisions([(tmp_path / "a.png", tmp_path / "link.png")], [tmp_path / "a.png"])
    assert "replace the input" in str(refused[tmp_path / "a.png"])


def test_folders_are_tried_before_work(tmp_path: Path) -> None:
    assert make_folders([tmp_path / "new" / "deep" / "a.png"]) == ({}, 0)
    assert list((tmp_path / "new" / "deep").iterdir()) == []
    touch(tmp_path, "file")
    refused, _ = make_folders([tmp_path / "file" / "a.png"])
    assert "cannot write to the folder" in str(refused[tmp_path / "file"])


def test_names_are_tried_before_work(tmp_path: Path) -> None:
    check_name(tmp_path / "new.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match="a folder has that name"):
        check_name(tmp_path / "folder.png")
    with pytest.raises(OutputError, match="too long"):
        check_name(tmp_path / ("n" * 300 + ".png"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user who is not root")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused, _ = make_folders([tmp_path / "a.png"])
    assert "Permission denied" in str(refused[tmp_path])
