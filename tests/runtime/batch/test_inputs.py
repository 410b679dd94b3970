"""Which files are taken."""

from __future__ import annotations

from pathlib import Path

from tudsr_runtime.batch.done import Records
from tudsr_runtime.batch.inputs import Found, find_inputs


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def taken(found: Found, folder: Path) -> list[str]:
    return [source.path.relative_to(folder).as_posix() for source in found.sources]


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
