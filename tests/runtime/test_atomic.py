from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tudsr_runtime.atomic import atomic_dir, atomic_write
from tudsr_runtime.errors import OutputError

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX links and devices")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_appears_whole_and_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new content")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new content"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_write_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail_half_way() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_write_into_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write .*a\.bin: No such file"),
        atomic_write(tmp_path / "missing" / "a.bin"),
    ):
        pytest.fail("the block must not run")


def test_disk_full_while_writing_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), atomic_write(tmp_path / "a.bin"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_too_long_a_name_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError), atomic_write(tmp_path / ("a" * 300)):
        pass


@posix_only
def test_write_never_replaces_a_device_or_a_folder(tmp_path: Path) -> None:
    for path in (Path(os.devnull), tmp_path):
        with pytest.raises(OutputError, match="not a plain file"), atomic_write(path):
            pytest.fail("the block must not run")


@posix_only
def test_write_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


@posix_only
def test_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "ours"):
        pass
    (tmp_path / "usual").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_dir_appears_whole_and_only_at_the_end(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "d") as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a").write_bytes(b"1")
        assert not (tmp_path / "d").exists()
        assert partial.parent == tmp_path
    assert (tmp_path / "d" / "sub" / "a").read_bytes() == b"1"
    assert names(tmp_path) == ["d"]


def test_failed_dir_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with atomic_dir(tmp_path / "d") as partial:
            (partial / "a").write_bytes(b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert names(tmp_path) == []


def test_existing_dir_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(OutputError, match="already exists"), atomic_dir(tmp_path / "d"):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["d"]


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    with atomic_dir(tmp_path / "d", overwrite=True) as partial:
        (partial / "new").touch()
    assert names(tmp_path / "d") == ["new"]
    assert names(tmp_path) == ["d"]


def test_overwriting_never_replaces_what_is_no_earlier_result(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "letters.txt").write_text("precious")
    with (
        pytest.raises(OutputError, match="no earlier result"),
        atomic_dir(home, overwrite=True, own="bundle.json"),
    ):
        pytest.fail("the block must not run")
    assert (home / "letters.txt").read_text() == "precious"


def test_overwriting_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"precious")
    with (
        pytest.raises(OutputError, match="a file of that name exists"),
        atomic_dir(tmp_path / "d", overwrite=True),
    ):
        pytest.fail("the block must not run")
    assert (tmp_path / "d").read_bytes() == b"precious"


@pytest.mark.skipif(sys.platform == "win32", reason="relies on POSIX rename semantics")
def test_old_folder_survives_a_failing_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "d"
    target.mkdir()
    (target / "old").touch()
    rename = Path.replace

    def failing(self: Path, to: Path) -> Path:
        if (self / "new").exists():
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "replace", failing)
    with (
        pytest.raises(OutputError, match="Input/output error"),
        atomic_dir(target, overwrite=True) as partial,
    ):
        (partial / "new").touch()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["d"]
