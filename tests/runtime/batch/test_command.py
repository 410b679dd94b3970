"""`tudsr upscale` and `tudsr bundle` from end to end, with a model that changes nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli
from tests.runtime.conftest import Tudsr
from tudsr_runtime.batch import command
from tudsr_runtime.batch import done as record
from tudsr_runtime.batch import run as batch
from tudsr_runtime.errors import NotFiniteError, OutputError, TudsrError
from tudsr_runtime.upscaler import Upscaler

ROOT = Path(cli.__file__).parent


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return draw(tmp_path / "photo.png")


def draw(path: Path, width: int = 13, height: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(levels).save(path)
    return path


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def files(folder: Path) -> list[str]:
    """All but the records of what is done."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != record.RECORD_FILE)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def fail_for(monkeypatch: pytest.MonkeyPatch, name: str, error: TudsrError) -> None:
    """Let the pipeline fail for pictures 20 px wide."""
    whole = Upscaler.upscale_rows

    def upscale_rows(
        self: Upscaler, image: np.ndarray, *rest: object, **options: object
    ) -> Iterator[np.ndarray]:
        if image.shape[1] == 20:
            raise error
        return whole(self, image, *rest, **options)

    draw(Path(name), width=20)
    monkeypatch.setattr(Upscaler, "upscale_rows", upscale_rows)


def test_one_picture(tudsr: Tudsr, photo: Path) -> None:
    result = tudsr("upscale", photo)
    assert result.code == 0
    assert result.out == f"{photo.with_name('photo_x8.png')}\n"
    assert size(photo.with_name("photo_x8.png")) == (104, 72)
    assert re.search(r"^test, with (OpenVINO|ONNX Runtime) on the CPU", result.err)
    assert "back end:" not in result.err
    told = tudsr("upscale", photo, "-v", "--overwrite")
    assert re.search(r"back end: (openvino|onnxruntime) on cpu \(.+\), fp32 \(.+\)", told.err)
    assert "13 x 9 -> 104 x 72 px, 2 tiles" in result.err


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        (["--scale", "2.5"], "photo_x2.5.png", (33, 23)),
        (["--factors", "2x2"], "photo_x4.png", (52, 36)),
        (["--factors", "4x-"], "photo_x4.png", (52, 36)),
        (["--factors", "2x2", "--scale", "3"], "photo_x3.png", (39, 27)),
    ],
)
def test_scale_and_factors(
    tudsr: Tudsr, photo: Path, options: list[str], name: str, expected: tuple[int, int]
) -> None:
    assert tudsr("upscale", photo, *options).code == 0
    assert size(photo.with_name(name)) == expected


def test_the_picture_itself_is_right(tudsr: Tudsr, tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(40, 200, 32).astype(np.uint8), (24, 1))
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    assert tudsr("upscale", tmp_path / "grey.png").code == 0
    with Image.open(tmp_path / "grey_x8.png") as result:
        assert result.mode == "L"
        shrunk = np.asarray(result.resize((32, 24), Image.Resampling.BOX), int)
    assert np.abs(shrunk - ramp).max() <= 2


def test_alpha_is_enlarged_too(tudsr: Tudsr, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((16, 16)).convert("LA").save(tmp_path / "a.png")
    picture = Image.new("RGBA", (16, 16), (200, 100, 50, 255))
    picture.putalpha(Image.linear_gradient("L").resize((16, 16)))
    picture.save(tmp_path / "a.png")
    assert tudsr("upscale", tmp_path / "a.png").code == 0
    with Image.open(tmp_path / "a_x8.png") as result:
        assert result.mode == "RGBA"
        assert result.size == (128, 128)
        assert np.abs(np.asarray(result)[..., :3].astype(int) - [200, 100, 50]).max() <= 1


@pytest.mark.parametrize("output", ["out.webp", "out.jpg", "new/", "new/deep"])
def test_o_names_a_file_or_a_folder(tudsr: Tudsr, photo: Path, output: str) -> None:
    target = photo.parent / output
    assert tudsr("upscale", photo, "-o", target).code == 0
    assert size(target if target.suffix else target / "photo_x8.png") == (104, 72)


def test_a_folder_that_cannot_be_made_is_refused_before_work(tudsr: Tudsr, photo: Path) -> None:
    result = tudsr("upscale", photo, "-o", photo / "missing" / "out.png", "--json")
    assert result.code == 8
    assert "tiles" not in result.err
    (told,) = map(json.loads, result.out.splitlines())
    assert told["error"]["type"] == "OutputError"
    assert told["error"]["exit_code"] == 8


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--factors", "9x9"), 2),
        (("--strength", "much"), 2),
        (("--bundle", "missing"), 5),
        (("--backend", "tensorrt", "--device", "cpu"), 6),
        (("--device", "npu"), 6),
        (("-o", "out.gif"), 2),
    ],
)
def test_whatever_ends_a_run_is_an_object_of_json(
    tudsr: Tudsr, photo: Path, options: tuple[str, ...], code: int
) -> None:
    result = tudsr("upscale", photo, "--json", *options)
    assert result.code == code
    failures = [told for told in map(json.loads, result.out.splitlines()) if told["status"] == "failed"]
    assert [told["error"]["exit_code"] for told in failures] == [code]
    assert failures[0]["error"]["message"] in result.err


@pytest.mark.parametrize(
    "command",
    [("bundle", "info"), ("bench", "latency", "--bundle"), ("bench", "table3", "--bundle"), ("build",)],
)
def test_every_command_with_json_tells_what_ended_it(tudsr: Tudsr, command: tuple[str, ...]) -> None:
    result = tudsr(*command, "missing", "--json")
    assert result.code == 5
    (told,) = map(json.loads, result.out.splitlines())
    assert told["error"]["type"] == "BundleError"


def test_a_bug_is_an_object_of_json_too(tudsr: Tudsr, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_inputs", lambda *_: [][0])
    result = tudsr("upscale", photo, "--json")
    assert result.code == 1
    (told,) = map(json.loads, result.out.splitlines())
    assert told["error"]["type"] == "IndexError"
    assert "Traceback" in told["error"]["traceback"]


def test_an_existing_output_is_not_replaced_unless_asked(tudsr: Tudsr, photo: Path) -> None:
    target = photo.with_name("photo_x8.png")
    target.write_bytes(b"mine")
    result = tudsr("upscale", photo)
    assert (result.code, result.out) == (2, "")
    assert "--on-exists" in result.err
    assert target.read_bytes() == b"mine"
    assert tudsr("upscale", photo, "--overwrite").code == 0
    assert size(target) == (104, 72)


def test_a_folder_with_a_bad_picture(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png")
    draw(tmp_path / "in" / "sub" / "c.png")
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    result = tudsr("upscale", tmp_path / "in", "-r", "-o", tmp_path / "out")
    assert result.code == 4
    assert files(tmp_path / "out") == ["a_x8.png", "sub/c_x8.png"]
    assert result.out.splitlines() == [str(tmp_path / "out" / name) for name in files(tmp_path / "out")]
    assert "b.png: not a picture" in result.err
    assert "2 ok, 1 failed in" in result.err
    assert result.err.endswith("error: 1 of 3 pictures failed\n")


def test_a_second_run_goes_on_where_the_first_stopped(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    tudsr("upscale", tmp_path)
    draw(tmp_path / "b.png", 11)
    first = (tmp_path / "a_x8.png").stat().st_mtime_ns
    result = tudsr("upscale", tmp_path)
    assert result.code == 0
    assert result.out == f"{tmp_path / 'b_x8.png'}\n"
    assert "1 ok, 1 skipped in" in result.err
    assert (tmp_path / "a_x8.png").stat().st_mtime_ns == first
    assert files(tmp_path) == ["a.png", "a_x8.png", "b.png", "b_x8.png"]


def test_one_failing_picture_does_not_stop_the_others(
    tudsr: Tudsr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "b.png")
    fail_for(monkeypatch, str(tmp_path / "a.png"), NotFiniteError("NaN", hint="fp32"))
    result = tudsr("upscale", tmp_path)
    assert result.code == 4
    assert "a.png: NaN\nTry: fp32\n" in result.err
    assert files(tmp_path) == ["a.png", "b.png", "b_x8.png"]
    assert tudsr("upscale", tmp_path / "a.png").code == 9


def test_a_full_disk_ends_the_run(tudsr: Tudsr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        draw(tmp_path / f"{number}.png")
    tried: list[Path] = []

    def refuse(_1: object, _2: object, _w: int, _h: int, target: Path, *_: object, **_n: object) -> None:
        tried.append(target)
        raise OutputError(f"cannot write {target}: No space left on device")

    monkeypatch.setattr(batch, "write_picture", refuse)
    result = tudsr("upscale", tmp_path)
    assert result.code == 4
    assert len(tried) == 2
    assert result.err.count("not tried") == 2


def test_collisions_cost_only_the_pictures_that_collide(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "one" / "a.png")
    draw(tmp_path / "two" / "a.png")
    draw(tmp_path / "two" / "b.png")
    run = ("upscale", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "out")
    result = tudsr(*run)
    assert (result.code, result.out) == (4, f"{tmp_path / 'out' / 'b_x8.png'}\n")
    assert result.err.count("would both be written") == 2
    assert files(tmp_path / "out") == ["b_x8.png"]
    assert tudsr(*run, "--on-exists", "rename").code == 0
    assert files(tmp_path / "out") == ["a_x8.png", "a_x8_1.png", "b_x8.png"]
    assert "3 skipped" in tudsr(*run, "--on-exists", "rename").err


def test_an_output_that_would_replace_an_input_costs_only_that_picture(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "icon.png", 5, 5)
    before = draw(tmp_path / "icon_x2.png", 10, 10).read_bytes()
    for policy, code in (("error", 4), ("overwrite", 4), ("rename", 0)):
        result = tudsr("upscale", tmp_path, "--scale", "2", "--on-exists", policy)
        assert result.code == code
        assert ("would replace the input" in result.err) == (code == 4)
        assert (tmp_path / "icon_x2.png").read_bytes() == before
    assert files(tmp_path) == ["icon.png", "icon_x2.png", "icon_x2_1.png", "icon_x2_x2.png"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--scale", "0.5"], 2),
        (["--scale", "33"], 2),
        (["--factors", "4by2"], 2),
        (["--overlap", "200"], 2),
        (["--backend", "nonsense"], 2),
        (["--color", "nonsense"], 2),
        (["--threads", "0"], 2),
        (["--quality", "101"], 2),
        (["--no-such-option"], 2),
        (["-o", "out.gif"], 2),
        (["--max-output-megapixels", "0"], 2),
        (["--bundle", "no-such-bundle"], 5),
        (["--bundle", "n" * 300], 5),
    ],
)
def test_exit_codes(tudsr: Tudsr, photo: Path, options: list[str], code: int) -> None:
    result = tudsr("upscale", photo, *options)
    assert (result.code, result.out) == (code, "")
    assert "Traceback" not in result.err
    assert files(photo.parent) == ["photo.png"]


def test_a_result_that_is_too_large_is_refused_before_work(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "photo.png", 200, 200)
    result = tudsr("upscale", tmp_path / "photo.png", "--max-output-megapixels", "1")
    assert (result.code, result.out) == (3, "")
    assert "200 x 200 would become 1600 x 1600, 3 megapixels; the limit is 1" in result.err


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_a_bad_picture_ends_with_its_own_code(tudsr: Tudsr, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    result = tudsr("upscale", tmp_path / "bad.png")
    assert (result.code, result.out) == (3, "")
    assert "bad.png" in result.err


def test_transparency_and_jpeg(tudsr: Tudsr, tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (1, 2, 3, 99)).save(tmp_path / "logo.png")
    result = tudsr("upscale", tmp_path / "logo.png", "-o", tmp_path / "logo.jpg")
    assert result.code == 2
    assert files(tmp_path) == ["logo.png"]
    (tmp_path / "logo.png").rename(tmp_path / "logo.jpg")
    result = tudsr("upscale", tmp_path / "logo.jpg")
    assert result.out == f"{tmp_path / 'logo_x8.png'}\n"
    assert "writing PNG" in result.err


def test_json_is_all_of_stdout(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "done.png")
    assert tudsr("upscale", tmp_path / "done.png").code == 0
    (tmp_path / "bad.png").touch()
    result = tudsr("upscale", tmp_path, "--json", "--on-exists", "skip")
    by_status = {record.get("status", "summary"): record for record in result.records}
    assert set(by_status) == {"ok", "failed", "skipped", "summary"}
    ok = by_status["ok"]
    assert ok["output"] == str(tmp_path / "a_x8.png")
    assert (ok["input_px"], ok["output_px"], ok["factors"], ok["tiles"]) == ([13, 9], [104, 72], [4, 2], 2)
    assert set(ok["seconds"]) == {"read", "upscale", "write"}
    assert by_status["failed"]["error"]["exit_code"] == 3
    assert result.records[-1]["summary"].items() >= {"ok": 1, "failed": 1, "skipped": 1}.items()


def test_dry_run_writes_nothing(tudsr: Tudsr, photo: Path) -> None:
    result = tudsr("upscale", photo, "--dry-run", "-o", photo.parent / "new")
    assert result.code == 0
    assert "13 x 9 -> 104 x 72 px, 2 tiles" in result.out
    (record, _) = tudsr("upscale", photo, "--dry-run", "--json").records
    assert record["status"] == "planned"
    assert record["estimate"]["seconds"] > 0
    assert 1e6 < record["estimate"]["host_bytes"] < 1e8
    assert "MB beside the engines" in result.out
    assert sorted(path.name for path in photo.parent.iterdir()) == ["photo.png"]


def test_quiet_says_nothing_but_the_result(tudsr: Tudsr, photo: Path) -> None:
    result = tudsr("upscale", photo, "-q")
    assert (result.out, result.err) == (f"{photo.with_name('photo_x8.png')}\n", "")


def test_strip(tudsr: Tudsr, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Secret Maker"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    for option, kept in (("keep", True), ("strip", False)):
        assert tudsr("upscale", tmp_path / "a.jpg", "--overwrite", "--metadata", option).code == 0
        assert (b"Secret Maker" in (tmp_path / "a_x8.jpg").read_bytes()) == kept


@pytest.mark.parametrize("name", ["写真 🖼 ü.png", "new\nline.png", "-r.png", "[bold]x.png", "\x1b[2J.png"])
def test_awkward_names(tudsr: Tudsr, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    result = tudsr("upscale", tmp_path, "--json")
    assert result.code == 0
    assert result.records[0]["output"] == str(tmp_path / name.replace(".png", "_x8.png"))
    assert "\x1b" not in result.err


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_a_name_that_is_no_text_comes_out_as_it_went_in(tmp_path: Path, small_bundle: Path) -> None:
    draw(tmp_path / "plain.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    done = subprocess.run(
        [sys.executable, ROOT / "cli.py", "upscale", ".", "--bundle", small_bundle],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"caf\xe9_x8.png\n"


def test_a_name_that_stdout_has_no_letters_for_comes_out_as_it_went_in(
    photo: Path, small_bundle: Path
) -> None:
    photo = photo.rename(photo.with_name("写真.png"))
    done = subprocess.run(
        [sys.executable, ROOT / "cli.py", "upscale", photo, "--bundle", small_bundle],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.rstrip() == os.fsencode(photo.with_name("写真_x8.png"))


def test_names_that_are_too_long(tudsr: Tudsr, photo: Path) -> None:
    long = photo.with_name("n" * 300 + ".png")
    for code, arguments in (
        (3, [long]),
        (4, [photo, long, "--dry-run"]),
        (8, [photo, "-o", long]),
        (8, [photo, photo.parent, "-o", long.with_suffix("")]),
    ):
        result = tudsr("upscale", *arguments)
        assert (result.code, "Traceback" in result.err) == (code, False), result.err
    assert files(photo.parent) == ["photo.png"]


def test_a_picture_that_may_not_be_read_does_not_stop_the_rest(
    tudsr: Tudsr, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = draw(photo.with_name("locked.png"))
    locked.chmod(0)
    # As it is for anybody but root.
    monkeypatch.setattr(os, "access", lambda path, *_, **__: "locked" not in str(path))
    whole = open

    def refuse(path: object, *rest: object, **options: object) -> object:
        if "locked.png" in str(path):
            raise PermissionError(13, "Permission denied")
        return whole(path, *rest, **options)

    monkeypatch.setattr("builtins.open", refuse)
    result = tudsr("upscale", locked, photo)
    assert (result.code, result.out.strip()) == (4, str(photo.with_name("photo_x8.png")))
    assert "locked.png: cannot be read: Permission denied" in result.err
    assert tudsr("upscale", locked).code == 3


def test_a_bug_shows_its_traceback(tudsr: Tudsr, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(command, "find_inputs", bug)
    result = tudsr("upscale", photo)
    assert result.code == 1
    assert "RuntimeError: a mistake" in result.err
    assert result.err.endswith("error: this is a bug of tudsr; please report it with the lines above\n")


def test_debug_shows_the_traceback_of_any_error(
    tudsr: Tudsr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Traceback" not in tudsr("upscale", tmp_path / "missing.png").err
    monkeypatch.setenv("TUDSR_DEBUG", "1")
    result = tudsr("upscale", tmp_path / "missing.png")
    assert result.code == 3
    assert "Traceback" in result.err


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["train", "base", "--config", "x.yaml"], "tudsr_train.base", "train"),
        (["export", "--base", "x", "--stage1", "y", "-o", "z"], "tudsr_export.export", "export"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    tudsr: Tudsr, monkeypatch: pytest.MonkeyPatch, arguments: list[str], package: str, extra: str
) -> None:
    # As on a machine without torch: the modules are fresh, and importing torch fails.
    for name in [name for name in sys.modules if name.startswith(package.partition(".")[0])]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = tudsr(*arguments)
    assert result.code == 6
    assert "the package torch is not installed\nTry: pip install " in result.err
    assert '"torch>=2.10"' in result.err
    assert ('"onnx>=' in result.err) == (extra == "export")


def test_bundle_info_and_verify(tudsr: Tudsr, small_bundle: Path, tmp_path: Path) -> None:
    result = tudsr("bundle", "info", small_bundle)
    assert result.code == 0
    assert "x4, timestep 200" in result.out
    (manifest,) = tudsr("bundle", "info", small_bundle, "--json").records
    assert manifest["tile"] == 256
    assert tudsr("bundle", "verify", small_bundle).code == 0
    assert tudsr("bundle", "verify", tmp_path).code == 5


def start(script: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Run `script` with the repository on its path; it has the command line in sys.argv."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        **options,
    )


SLOW_MODEL = """
    import sys, time, cli
    from tudsr_runtime.upscaler import Upscaler
    def upscale_rows(self, image, *_, **__):
        print("ready", file=sys.stderr, flush=True)
        time.sleep(60)
    Upscaler.upscale_rows = upscale_rows
    sys.exit(cli.main())
"""

SLOW_DISK = """
    import sys, time, cli
    from tudsr_runtime.pictures.png import PngWriter
    def finish(self):
        self._file.flush()
        print("ready", file=sys.stderr, flush=True)
        time.sleep(60)
    PngWriter.finish = finish
    sys.exit(cli.main())
"""


@pytest.mark.parametrize("script", [SLOW_MODEL, SLOW_DISK])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_and_leaves_nothing_half_written(
    photo: Path, small_bundle: Path, script: str, number: signal.Signals, code: int
) -> None:
    arguments = ("upscale", photo, "--bundle", small_bundle, "-q")
    with start(script, *arguments, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(number)
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == code
    assert files(photo.parent) == ["photo.png"]


def test_a_stopped_folder_says_how_far_it_came(photo: Path, small_bundle: Path) -> None:
    draw(photo.with_name("second.png"))
    with start(
        SLOW_MODEL, "upscale", photo.parent, "--bundle", small_bundle, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        while process.stderr.readline() != "ready\n":
            pass
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read().endswith(
            "stopped, 0 of 2 done; the same command goes on with the others\n"
        )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_being_killed_while_writing_leaves_the_old_output(photo: Path, small_bundle: Path) -> None:
    target = photo.with_name("photo_x8.png")
    target.write_bytes(b"the old one")
    arguments = ("upscale", photo, "--bundle", small_bundle, "-q", "--overwrite")
    with start(SLOW_DISK, *arguments, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.kill()
    assert target.read_bytes() == b"the old one"
    visible = [name for name in files(photo.parent) if not name.startswith(".")]
    assert visible == ["photo.png", "photo_x8.png"]


def test_a_reader_that_has_gone_ends_the_run_quietly(photo: Path, small_bundle: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = "import sys, cli; sys.exit(cli.main())"
    arguments = ("upscale", photo, "--bundle", small_bundle, "-q")
    with start(script, *arguments, stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize("options", [["-q"], ["-q", "--json"], ["-q", "-o", "-"]])
def test_a_stdout_that_takes_nothing_is_an_error(photo: Path, small_bundle: Path, options: list[str]) -> None:
    script = "import sys, cli; sys.exit(cli.main())"
    arguments = ("upscale", photo, "--bundle", small_bundle, *options)
    with (
        open("/dev/full", "w") as full,
        start(script, *arguments, stdout=full, stderr=subprocess.PIPE) as process,
    ):
        assert process.stderr is not None
        assert process.stderr.read() == "error: cannot write to stdout: No space left on device\n"
    assert process.returncode == 8


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("closed", "code", "said"),
    [("- <&-", 3, "empty"), ("photo.png >&-", 8, "cannot write to stdout"), ("photo.png 2>&-", 0, "")],
)
def test_streams_that_are_closed(photo: Path, small_bundle: Path, closed: str, code: int, said: str) -> None:
    command = f'"$0" "$1" upscale --bundle "$2" {closed}'
    arguments = ["sh", "-c", command, sys.executable, ROOT / "cli.py", small_bundle]
    done = subprocess.run(arguments, cwd=photo.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_progress_bar_and_stdout_stays_pure(
    photo: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pty

    controller, terminal = pty.openpty()
    # not the terminal that the tests run in
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    script = "import sys, cli; sys.exit(cli.main())"
    arguments = ("upscale", photo, "--bundle", small_bundle)
    streams = {"stderr": terminal, "stdout": subprocess.PIPE}
    with start(script, *arguments, **streams) as process:
        os.close(terminal)
        assert process.stdout is not None
        assert process.stdout.read() == f"{photo.with_name('photo_x8.png')}\n"
    shown = b""
    while True:
        try:
            shown += os.read(controller, 65536)
        except OSError:
            break
    os.close(controller)
    assert process.returncode == 0
    assert b"/2 tiles" in shown


def largest(width: int, height: int, limit: int) -> float:
    """The largest scale in hundredths, tried one by one."""
    tried = [n / 100 for n in range(100, 3201)]
    fitting = [s for s in tried if int(width * s + 0.5) * int(height * s + 0.5) // 10**6 <= limit]
    return max(fitting)


@pytest.mark.parametrize("options", [(), ("--scale", "32"), ("--width", "4000"), ("--megapixels", "9")])
def test_a_picture_that_would_be_too_large_gets_a_command_that_is_accepted(
    tudsr: Tudsr, tmp_path: Path, options: tuple[str, ...]
) -> None:
    photo = tmp_path / "my photo.png"
    Image.new("RGB", (400, 300), "olive").save(photo)
    result = tudsr("upscale", photo, *options, "--max-output-megapixels", "2", "--dry-run")
    assert result.code == 3
    (hint,) = [line for line in result.err.splitlines() if line.startswith("Try: ")]
    words = shlex.split(hint.removeprefix("Try: "))
    assert words[:3] == ["tudsr", "upscale", str(photo)]
    assert float(words[words.index("--scale") + 1]) == largest(400, 300, 2)
    again = tudsr(*words[1:])
    assert again.code == 0, again.err


def test_a_format_that_is_too_small_gets_a_command_that_is_accepted(tudsr: Tudsr, tmp_path: Path) -> None:
    photo = tmp_path / "wide.webp"
    Image.new("RGB", (4000, 10)).save(photo)
    result = tudsr("upscale", photo, "--dry-run")
    assert result.code == 8
    command = result.err.rpartition(", or ")[2]
    assert "--scale 4.09" in command
    assert tudsr(*shlex.split(command)[1:]).code == 0


def test_where_nothing_fits_the_limit_is_named(tudsr: Tudsr, tmp_path: Path) -> None:
    photo = tmp_path / "a.png"
    Image.new("RGB", (2000, 1500)).save(photo)
    result = tudsr("upscale", photo, "--scale", "2", "--max-output-megapixels", "2", "--dry-run")
    assert "Try: --max-output-megapixels 12" in result.err
    options = ("--scale", "2", "--max-output-megapixels", "12", "--dry-run")
    assert tudsr("upscale", photo, *options).code == 0


def test_missing_folders_of_a_named_output_are_made(tudsr: Tudsr, photo: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "x.png"
    assert tudsr("upscale", photo, "-o", target, "--dry-run").code == 0
    assert not target.parent.exists()
    assert tudsr("upscale", photo, "-o", target).code == 0
    assert size(target) == (104, 72)


@pytest.mark.parametrize("name", ["new", "new.v2", "new.png"])
def test_a_slash_at_the_end_means_a_folder(tudsr: Tudsr, photo: Path, tmp_path: Path, name: str) -> None:
    assert tudsr("upscale", photo, "-o", f"{tmp_path / name}/").code == 0
    assert size(tmp_path / name / "photo_x8.png") == (104, 72)


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="needs /dev/fd")
@pytest.mark.parametrize(
    ("command", "made"),
    [
        ("tudsr upscale <(cat photo.png) -o a.png", {"a.png"}),
        ("tudsr upscale <(cat photo.png) > a.png", {"a.png"}),
        ("tudsr upscale <(cat photo.png) photo.png -o out", {"pipe*_x8.png", "photo_x8.png"}),
        ("tudsr upscale photo.png -o /dev/stdout > a.png", {"a.png"}),
        ("tudsr upscale photo.png -o /dev/stdout | cat > a.png", {"a.png"}),
        ("tudsr upscale /dev/stdin -o a.png < photo.png", {"a.png"}),
        ("cat photo.png | tudsr upscale /dev/stdin > a.png", {"a.png"}),
    ],
)
def test_pipes_by_other_names(photo: Path, small_bundle: Path, command: str, made: set[str]) -> None:
    folder = photo.parent
    before = {*folder.rglob("*.png")}
    run = shlex.join([sys.executable, "-m", "tudsr", "upscale", "--bundle", str(small_bundle)])
    script = command.replace("tudsr upscale", run)
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {*folder.rglob("*.png")} - before
    assert {re.sub(r"\d+_", "*_", path.name) for path in found} == made
    assert {size(path) for path in found} == {(104, 72)}


def test_a_device_or_a_fifo_is_no_output(tudsr: Tudsr, photo: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.png"
    os.mkfifo(fifo)
    for target in (fifo, Path(os.devnull)):
        result = tudsr("upscale", photo, "-o", target)
        assert result.code == 2
        assert f"-o {target} is a device or a pipe" in result.err
        assert f"Try: tudsr upscale ... -o - > {target}" in result.err


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_stdin_is_called_stdin(photo: Path, small_bundle: Path, content: bytes | None) -> None:
    command = [sys.executable, "-m", "tudsr", "upscale", "-", "-o", "out.png", "--json"]
    done = subprocess.run(
        [*command, "--bundle", str(small_bundle)],
        cwd=photo.parent,
        input=content or photo.read_bytes(),
        capture_output=True,
    )
    assert done.returncode == (3 if content else 0)
    assert json.loads(done.stdout.splitlines()[0])["input"] == "stdin"
    assert b"stdin: " in done.stderr
    assert b"tudsr-" not in done.stdout + done.stderr


def test_an_empty_output_is_no_folder(tudsr: Tudsr, photo: Path) -> None:
    result = tudsr("upscale", photo, "-o", "")
    assert result.code == 2
    assert "-o is empty" in result.err
    assert files(photo.parent) == ["photo.png"]
