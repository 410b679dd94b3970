from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tudsr_runtime.atomic import atomic_dir, atomic_write, other_names, sweep
from tudsr_runtime.batch.claim import claim
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


@posix_only
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604, 0o444, 0o755])
@pytest.mark.parametrize("by", ["name", "link"])
def test_what_is_replaced_passes_on_its_mode(tmp_path: Path, mode: int, by: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    (tmp_path / "link").symlink_to("a")
    with atomic_write(path if by == "name" else tmp_path / "link") as file:
        file.write(b"new")
        # Not even meanwhile may anybody read it who might not read the old one.
        (partial,) = tmp_path.glob(".tudsr-*")
        assert partial.stat().st_mode & 0o777 & ~mode & 0o077 == 0
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o7777 == mode
    assert (tmp_path / "link").is_symlink()


@posix_only
def test_what_is_replaced_makes_no_program_run_as_another_user(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "a").chmod(0o4755)
    with atomic_write(tmp_path / "a"):
        pass
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o755


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_what_is_replaced_passes_on_its_owner_and_group(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.chown(tmp_path / "a", 1234, 4321)
    with atomic_write(tmp_path / "a"):
        pass
    status = (tmp_path / "a").stat()
    assert (status.st_uid, status.st_gid) == (1234, 4321)


@posix_only
def test_a_group_that_cannot_be_kept_gives_its_rights_to_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "a").chmod(0o640)
    whole = Path.stat

    def other_group(self: Path, **options: bool) -> os.stat_result:
        status = whole(self, **options)
        fields = list(status)
        fields[5] += self.name == "a"
        return os.stat_result(fields)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "stat", other_group)
    monkeypatch.setattr(os, "chown", refuse)
    with atomic_write(tmp_path / "a"):
        pass
    monkeypatch.undo()
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


@posix_only
def test_a_file_system_without_modes_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "a").touch()
    for name in ("chmod", "chown"):
        monkeypatch.setattr(os, name, refuse)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


@posix_only
def test_other_names_keep_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert (other_names(tmp_path / "a"), other_names(tmp_path / "c")) == (1, 0)
    with atomic_write(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "b").read_bytes() == b"old"


@posix_only
@pytest.mark.parametrize("mode", [0o700, 0o2750])
def test_a_folder_that_is_replaced_passes_on_its_mode(tmp_path: Path, mode: int) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(mode)
    # Some systems drop the bit for a group that is not the user's own.
    mode = (tmp_path / "d").stat().st_mode & 0o7777
    with atomic_dir(tmp_path / "d", overwrite=True) as partial:
        assert partial.stat().st_mode & 0o077 == 0
    assert (tmp_path / "d").stat().st_mode & 0o7777 == mode


def test_only_one_process_is_at_work_on_a_result(tmp_path: Path) -> None:
    with claim(tmp_path / "a") as first, claim(tmp_path / "a") as second, claim(tmp_path / "b") as other:
        assert (first, second, other) == (True, False, True)
        assert sweep(tmp_path) == 0
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == []
    with claim(tmp_path / "a") as again:
        assert again


def test_a_claim_outlives_no_process(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tudsr_runtime.batch.claim import claim\n"
        "with claim(Path(sys.argv[1])) as ours: print(ours, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, tmp_path / "a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with claim(tmp_path / "a") as ours:
            assert not ours
        process.kill()
    assert len(names(tmp_path)) == 1
    with claim(tmp_path / "a") as ours:
        assert ours
    assert names(tmp_path) == []
    (tmp_path / ".tudsr-0.claim").touch()
    assert sweep(tmp_path) == 0
    assert names(tmp_path) == []


@posix_only
def test_what_stands_in_the_way_of_a_claim_is_left_alone(tmp_path: Path) -> None:
    with claim(tmp_path / "a"):
        (mark,) = tmp_path.iterdir()
    (tmp_path / "victim").write_bytes(b"precious")
    for make in (lambda: mark.symlink_to("victim"), mark.mkdir):
        make()
        with claim(tmp_path / "a") as ours:
            assert ours
        assert (tmp_path / "victim").read_bytes() == b"precious"
        mark.rmdir() if mark.is_dir() else mark.unlink()
    os.mkfifo(mark)
    with claim(tmp_path / "a"):
        pass
    with claim(tmp_path / "missing" / "a") as ours:
        assert ours


@posix_only
def test_a_file_system_without_locks_keeps_no_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claim(tmp_path / "a") as ours:
        assert (ours, names(tmp_path)) == (True, [])


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


KILLED = """
import os, signal, sys
from pathlib import Path
from tudsr_runtime import atomic

at, target = sys.argv[1], Path(sys.argv[2])
swap = Path.replace

def replace(self, to):
    result = swap(self, to)
    if self == target if at == "aside" else to == target:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

Path.replace = replace
with atomic.atomic_dir(target, overwrite=True) as folder:
    (folder / "new").touch()
    if at == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@posix_only
@pytest.mark.parametrize(("at", "left"), [("writing", "old"), ("aside", "old"), ("swapped", "new")])
def test_what_a_killed_process_left_of_a_folder_is_cleared_up_by_the_next(
    at: str, left: str, tmp_path: Path
) -> None:
    target = tmp_path / "my.bundle"
    target.mkdir()
    (target / "old").touch()
    subprocess.run([sys.executable, "-c", KILLED, at, target], check=False)
    assert any(name.startswith(".tudsr-") for name in names(tmp_path))
    with atomic_dir(tmp_path / "other"):
        assert names(target) == [left]
    assert names(tmp_path) == ["my.bundle", "other"]


def test_the_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "a") as first:
        (first / "file").touch()
        with atomic_dir(tmp_path / "b"):
            pass
        assert names(first) == ["file"]
    assert names(tmp_path) == ["a", "b"]
