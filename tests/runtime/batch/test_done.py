"""The record of what is done: resuming, and files of that name that are no record."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.runtime.conftest import Tudsr
from tudsr_runtime.batch import done as record
from tudsr_runtime.batch import job
from tudsr_runtime.batch.done import RECORD_FILE, Records
from tudsr_runtime.pictures import read as image_io

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX links and FIFOs")
SHA = "0" * 64


def draw(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(levels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw(tmp_path / "in" / "a.png")
    draw(tmp_path / "in" / "b.png")
    (tmp_path / "out").mkdir()
    return tmp_path


def result(folder: Path, name: str = "a_x8.png") -> Path:
    (folder / name).write_bytes(b"result")
    return folder / name


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    (path.parent / "victim").write_bytes(b"precious\n")
    path.symlink_to("victim")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def hard_link(path: Path) -> None:
    (path.parent / "victim").write_bytes(b"precious\n")
    path.hardlink_to(path.parent / "victim")


@posix_only
@pytest.mark.parametrize("make", [fifo, link, device, hard_link, Path.mkdir])
def test_what_is_no_record_is_neither_read_nor_written_and_said_once(
    tudsr: Tudsr, folder: Path, make: Callable[[Path], None]
) -> None:
    make(folder / "out" / RECORD_FILE)
    for seed in range(2):
        draw(folder / "in" / "b.png", seed)
        done = tudsr("upscale", folder / "in", "-o", folder / "out", "--overwrite")
        assert (done.code, len(done.out.splitlines())) == (0, 2)
        assert done.err.count("is not used") == 1
    victim = folder / "out" / "victim"
    assert not victim.exists() or victim.read_bytes() == b"precious\n"


DAMAGED = {
    "number for a name": json.dumps(
        {"input": "a.png", "input_sha256": SHA, "options": {}, "output": 5, "bytes": 1}
    ).encode(),
    "another folder": json.dumps(
        {"input": "a.png", "input_sha256": SHA, "options": {}, "output": "../x", "bytes": 6}
    ).encode(),
    "NUL in a name": json.dumps(
        {"input": "a.png", "input_sha256": SHA, "options": {}, "output": "\0", "bytes": 1}
    ).encode(),
    "deep nesting": b"[" * 50_000,
    "deep options": b'{"options":' * 8_000,
    "a long number": b"9" * 60_000,
    "a huge line": b"{" * 10_000_000,
    "NULs": bytes(5_000),
    "no UTF-8": b'{"input": "\xff"}',
    "no object": b"[]",
    "half a line": b'{"input": "a.p',
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("end", [b"\n", b""])
def test_damaged_lines_cost_nothing_but_themselves(
    tudsr: Tudsr, folder: Path, line: bytes, end: bytes
) -> None:
    run = ("upscale", folder / "in", "-o", folder / "out")
    (folder / "out" / RECORD_FILE).write_bytes(line + end)
    assert tudsr(*run).code == 0
    again = tudsr(*run)
    assert (again.code, again.out) == (0, "")
    assert "2 skipped" in again.err
    assert again.err.count("damaged lines are left out") == 1


LINES = st.one_of(
    st.binary(max_size=80),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        dict.fromkeys(record.Done.__dataclass_fields__, st.none() | st.integers() | st.text(max_size=5))
    ).map(lambda value: json.dumps(value).encode()),
)


@given(st.lists(LINES, max_size=5))
def test_no_bytes_whatever_hide_a_good_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("record")
    (folder / RECORD_FILE).write_bytes(b"\n".join(lines))
    kept = Records()[folder]
    kept.add("a.png", SHA, {"factors": (4, 2)}, result(folder))
    assert Records()[folder].find("a.png", SHA, {"factors": [4, 2]}) == folder / "a_x8.png"
    assert kept.find("a.png", SHA, {"factors": [2, 4]}) is None


def test_a_record_names_results_of_its_own_folder_only(tmp_path: Path) -> None:
    outside = result(tmp_path, "x")
    folder = tmp_path / "folder"
    folder.mkdir()
    for output in ("../x", str(outside), "..\\x", "C:x", "..", ""):
        line = {"input": "a.png", "input_sha256": SHA, "options": {}, "output": output, "bytes": 6}
        (folder / RECORD_FILE).write_text(json.dumps(line) + "\n")
        assert Records()[folder].find("a.png", SHA, {}) is None


def test_the_record_is_parsed_once_however_many_pictures_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, parsed = 300, []
    writer = Records()[tmp_path]
    for number in range(count):
        writer.add(f"{number}.png", SHA, {}, result(tmp_path, f"{number}_x8.png"))
    whole = record._parsed
    monkeypatch.setattr(record, "_parsed", lambda line: parsed.append(line) or whole(line))
    reader = Records()[tmp_path]
    for number in range(count):
        assert reader.find(f"{number}.png", SHA, {}) == tmp_path / f"{number}_x8.png"
    assert len(parsed) == count
    # What another run adds meanwhile is seen, and costs its own line only.
    writer.add("new.png", SHA, {}, result(tmp_path, "new_x8.png"))
    assert reader.find("new.png", SHA, {}) == tmp_path / "new_x8.png"
    assert len(parsed) == count + 1


def test_an_endless_line_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / RECORD_FILE).write_bytes(bytes(200_000))
    monkeypatch.setattr(record, "MAX_BYTES", 100_000)
    told: list[str] = []
    reader = Records(told.append)[tmp_path]
    for _ in range(3):
        assert reader.find("a.png", SHA, {}) is None
    assert len(told) == 2  # that it is damaged, and that it is long
    assert reader._read <= 100_000 + record.MAX_LINE


@pytest.mark.parametrize("moment", ["while", "after"])
def test_a_picture_that_is_replaced_meanwhile_is_never_recorded_for_what_it_was_not(
    tudsr: Tudsr, folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The same size, so that nothing but the hash can tell."""
    whole = image_io.read_picture
    source = folder / "in" / "a.png"

    def replaced(header: image_io.Header, *rest: object) -> object:
        if header.path == source and moment == "while":
            draw(source, seed=1)
        picture = whole(header, *rest)
        # From here on the new content lies there, when the result is written and recorded.
        if header.path == source:
            draw(source, seed=2)
        return picture

    monkeypatch.setattr(job, "read_picture", replaced)
    run = ("upscale", folder / "in", "-o", folder / "out")
    first = tudsr(*run)
    assert "a.png: the file changed while it was read" in first.err
    assert (first.code, "1 ok, 1 failed" in first.err) == (4, True)
    monkeypatch.undo()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not replace an open file")
def test_a_picture_that_is_replaced_while_it_is_computed_is_done_again(
    tudsr: Tudsr, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tudsr_runtime.batch import run as batch

    whole = batch.write_picture
    source = folder / "in" / "a.png"

    def replaced(*arguments: object, **options: object) -> object:
        if arguments[4] == folder / "out" / "a_x8.png":
            draw(source, seed=1)
        return whole(*arguments, **options)

    monkeypatch.setattr(batch, "write_picture", replaced)
    run = ("upscale", folder / "in", "-o", folder / "out")
    assert tudsr(*run).code == 0
    monkeypatch.undo()
    # The result is that of the picture as it was, so it is no result of what lies there now.
    again = tudsr(*run)
    assert (again.code, "1 failed, 1 skipped" in again.err) == (4, True)
    assert "2 skipped" not in tudsr(*run, "--overwrite").err


def test_the_same_command_twice_is_no_error(tudsr: Tudsr, folder: Path) -> None:
    source = folder / "in" / "a.png"
    assert tudsr("upscale", source).code == 0
    made = (folder / "in" / "a_x8.png").stat().st_mtime_ns
    for options in ([], ["--dry-run"], ["--json"]):
        again = tudsr("upscale", source, *options)
        assert again.code == 0
        assert "a_x8.png was made so by an earlier run" in again.err
    assert (folder / "in" / "a_x8.png").stat().st_mtime_ns == made
    assert tudsr("upscale", source, "--color", "none").code == 2
    draw(source, seed=1)
    assert tudsr("upscale", source).code == 2


def test_only_the_output_that_was_named_counts_as_done(tudsr: Tudsr, folder: Path) -> None:
    source, mine = folder / "in" / "a.png", folder / "out" / "mine.png"
    run = ("upscale", source, "-o")
    assert tudsr(*run, folder / "out" / "a.png").code == 0
    mine.write_bytes(b"mine")
    again = tudsr(*run, mine)
    assert (again.code, "mine.png exists already" in again.err) == (2, True)
    assert tudsr(*run, folder / "out" / "a.png").code == 0
    assert mine.read_bytes() == b"mine"
