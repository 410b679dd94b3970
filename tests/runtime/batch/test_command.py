"""`tudsr upscale` and `tudsr bundle` from end to end, with a model that changes nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runtime.batch.drawn import ROOT, draw, files, size
from tests.runtime.conftest import Tudsr
from tudsr_runtime.batch import command
from tudsr_runtime.batch import run as batch
from tudsr_runtime.errors import NotFiniteError, OutputError, TudsrError
from tudsr_runtime.upscaler import Upscaler


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


def test_an_empty_output_is_no_folder(tudsr: Tudsr, photo: Path) -> None:
    result = tudsr("upscale", photo, "-o", "")
    assert result.code == 2
    assert "-o is empty" in result.err
    assert files(photo.parent) == ["photo.png"]
