"""What belongs together, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tudsr_eval.matching import match
from tudsr_runtime.errors import InputError, UsageError


def folder(where: Path, *names: str) -> Path:
    where.mkdir()
    for name in names:
        (where / name).touch()
    return where


def test_names_of_results_find_their_subject(tmp_path: Path) -> None:
    results = folder(tmp_path / "nano", "a_x4.png", "b_640x480.png", "c.png", "d_x2.5_1.webp")
    references = folder(tmp_path / "HR", "a.png", "b.jpg", "c.tif", "d.png")
    sources = folder(tmp_path / "LR", "a.jpg", "c.png")
    found = match([results], references, sources)
    assert [(c.name, c.reference.name if c.reference else None) for c in found.cases] == [
        ("a", "a.png"), ("b", "b.jpg"), ("c", "c.tif"), ("d", "d.png"),
    ]  # fmt: skip
    assert [c.source.name if c.source else None for c in found.cases] == ["a.jpg", None, "c.png", None]
    assert found.notes == ["without an input: b_640x480.png, d_x2.5_1.webp"]


def test_the_whole_name_comes_first(tmp_path: Path) -> None:
    results = folder(tmp_path / "ours", "a_x4.png")
    references = folder(tmp_path / "HR", "a.png", "a_x4.png")
    (case,) = match([results], references, None).cases
    assert case.reference == references / "a_x4.png"


def test_what_does_not_match_is_said(tmp_path: Path) -> None:
    results = folder(tmp_path / "ours", "a.png", *(f"new{n}.png" for n in range(5)))
    references = folder(tmp_path / "HR", "a.png", "lost.png")
    found = match([results], references, None)
    assert found.notes[0] == "without a reference: new0.png, new1.png, new2.png and 2 more"
    assert found.notes[1].endswith("matched by no prediction: lost.png")
    assert len(found.cases) == 6


def test_two_single_pictures_belong_together(tmp_path: Path) -> None:
    folder(tmp_path / "any", "one.png", "other.png")
    (case,) = match([tmp_path / "any" / "one.png"], tmp_path / "any" / "other.png", None).cases
    assert case.reference == tmp_path / "any" / "other.png"


def test_methods_are_named_by_their_folders_and_share_subjects(tmp_path: Path) -> None:
    ours, theirs = folder(tmp_path / "ours", "a_x4.png"), folder(tmp_path / "theirs", "a.png")
    cases = match([ours, theirs], folder(tmp_path / "HR", "a.png"), None).cases
    assert [(c.method, c.name) for c in cases] == [("ours", "a"), ("theirs", "a")]


def test_refusals(tmp_path: Path) -> None:
    ours = folder(tmp_path / "ours", "a.png", "a_x4.png")
    references = folder(tmp_path / "HR", "a.png")
    with pytest.raises(UsageError, match="both predictions of a"):
        match([ours], references, None)
    with pytest.raises(UsageError, match="no prediction has a reference"):
        match([ours], folder(tmp_path / "else", "z.png"), None)
    with pytest.raises(UsageError, match="both be called ours"):
        match([ours, folder(tmp_path / "b", "a.png").parent / "ours"], None, None)
    with pytest.raises(UsageError, match=r"a\.jpg and .*a\.png are both a"):
        match([ours], folder(tmp_path / "twice", "a.png", "a.jpg"), None)
    with pytest.raises(InputError, match="no picture"):
        match([folder(tmp_path / "empty", ".hidden.png", "notes.txt")], None, None)
    with pytest.raises(InputError, match="no such file"):
        match([tmp_path / "absent"], None, None)
