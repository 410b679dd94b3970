"""Which pictures are done: by patterns, and as one of several machines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.runtime.conftest import Tudsr
from tudsr_runtime.batch.claim import claim
from tudsr_runtime.batch.done import RECORD_FILE
from tudsr_runtime.batch.inputs import Source, find_inputs
from tudsr_runtime.batch.selection import Shard, matches, parse_shard
from tudsr_runtime.errors import UsageError

FROZEN = [2, 2, 1, 3, 1, 1, 3, 3, 3, 3, 1, 1]
"""The shards, of three, of picture0.png to picture11.png."""
TUDSR = Path(sys.executable).with_name("tudsr")


def draw(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)).save(path)
    return path


def names(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORD_FILE)
    return sorted(path.relative_to(folder).as_posix() for path in found)


PARTS = st.text(
    st.characters(exclude_characters="/\\\0", exclude_categories=["Cs", "Cc"]), min_size=1
).filter(lambda name: name not in (".", ".."))


@given(st.lists(PARTS, min_size=1, max_size=3), st.integers(1, 9))
def test_each_picture_is_of_one_shard_wherever_its_folder_lies(parts: list[str], count: int) -> None:
    shards = [Shard(number, count) for number in range(1, count + 1)]
    for root in (Path("/data/in"), Path("elsewhere")):
        source = Source(root.joinpath(*parts), root)
        assert [shard.holds(source) for shard in shards].count(True) == 1
        assert shards[0].holds(source) == shards[0].holds(Source(Path("x").joinpath(*parts), Path("x")))


def test_shards_are_those_of_every_version_and_about_even() -> None:
    """What a cluster has half done must not be dealt anew by the next version."""
    sources = [Source(Path("in", f"picture{number}.png"), Path("in")) for number in range(900)]
    dealt = [next(n for n in (1, 2, 3) if Shard(n, 3).holds(source)) for source in sources]
    assert dealt[:12] == FROZEN
    assert all(240 < dealt.count(number) < 360 for number in (1, 2, 3))


@given(PARTS)
def test_pictures_whose_results_could_have_one_name_are_of_one_shard(name: str) -> None:
    shard = Shard(1, 7)
    alike = {shard.holds(Source(Path(f"{name}.{suffix}"))) for suffix in ("png", "jpg", "PNG", "webp")}
    assert len(alike) == 1


def test_three_shards_at_once_are_the_whole_folder(tmp_path: Path, small_bundle: Path) -> None:
    pictures = [f"{number}.png" for number in range(7)] + ["sub/a.png", "sub/b.png"]
    for name in pictures:
        draw(tmp_path / "in" / name)
    command = [TUDSR, "upscale", "in", "-r", "-o", "out", "--scale", "2", "--threads", "1"]
    command += ["--bundle", small_bundle, "--shard"]
    runs = [
        subprocess.Popen([*command, f"{number}/3"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for number in (1, 2, 3)
    ]
    made = [run.communicate()[0].splitlines() for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    together = sorted(path for paths in made for path in paths)
    expected = [f"{name.removesuffix('.png')}_x2.png" for name in pictures]
    assert together == sorted(os.path.join("out", *name.split("/")) for name in expected)  # noqa: PTH118
    assert names(tmp_path / "out") == sorted(expected)


def test_an_empty_shard_is_done(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png")
    codes = [
        tudsr("upscale", tmp_path / "in", "-o", tmp_path / "out", "--shard", f"{n}/9") for n in range(1, 10)
    ]
    assert {one.code for one in codes} == {0}
    assert sum("0 of 1 picture" in one.err for one in codes) == 8
    assert names(tmp_path / "out") == ["a_x8.png"]


def test_a_picture_of_another_shard_is_not_replaced(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    before = draw(tmp_path / "a_x8.png").read_bytes()
    results = [tudsr("upscale", tmp_path, "--overwrite", "--shard", f"{number}/2") for number in (1, 2)]
    said = "".join(one.err for one in results)
    assert "would replace the input" in said
    assert (tmp_path / "a_x8.png").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("2/3", {}, (2, 3)),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"},
            (1, 4),
        ),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0"},
            (4, 4),
        ),
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (3, 3),
        ),
        ("auto/5", {"JOB_COMPLETION_INDEX": "0"}, (1, 5)),
        ("auto/5", {"JOB_COMPLETION_INDEX": "4"}, (5, 5)),
    ],
)
def test_the_part_is_read_as_asked_or_from_slurm_and_kubernetes(
    text: str, environ: dict[str, str], expected: tuple[int, int]
) -> None:
    shard = parse_shard(text, environ)
    assert shard is not None
    assert (shard.number, shard.count) == expected


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("0/3", {}),
        ("4/3", {}),
        ("1/0", {}),
        ("2", {}),
        ("one/3", {}),
        ("-1/3", {}),
        ("1/3/4", {}),
        ("\u0661/3", {}),
        ("auto", {}),
        ("auto", {"JOB_COMPLETION_INDEX": "1"}),
        ("auto/3", {"JOB_COMPLETION_INDEX": "3"}),
        ("auto/3", {"JOB_COMPLETION_INDEX": "x"}),
        ("auto", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}),
        ("auto/5", {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "1"}),
    ],
)
def test_what_is_no_part_is_refused(text: str, environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="--shard"):
        parse_shard(text, environ)


def test_a_part_that_is_wrong_ends_the_run_before_work(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    assert tudsr("upscale", tmp_path, "--shard", "3/2").code == 2
    assert names(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--include", "*.png"], ["a", "raw/b", "raw/deep/c"]),
        (["--exclude", "*.jpg"], ["a", "raw/b", "raw/deep/c"]),
        (["--include", "raw"], ["raw/b", "raw/deep/c", "raw/d"]),
        (["--include", "raw/*"], ["raw/b", "raw/deep/c", "raw/d"]),
        (["--include", "*.png", "--include", "d.*"], ["a", "raw/b", "raw/deep/c", "raw/d"]),
        (["--include", "*.png", "--exclude", "deep"], ["a", "raw/b"]),
        (["--exclude", "raw/*"], ["a"]),
        (["--include", "?.png"], ["a", "raw/b", "raw/deep/c"]),
    ],
)
def test_patterns_choose_in_folders(
    tudsr: Tudsr, tmp_path: Path, options: list[str], expected: list[str]
) -> None:
    for name in ("a.png", "raw/b.png", "raw/deep/c.png", "raw/d.jpg"):
        draw(tmp_path / "in" / name)
    result = tudsr("upscale", tmp_path / "in", "-r", "-o", tmp_path / "out", "--format", "png", *options)
    assert result.code == 0, result.err
    assert names(tmp_path / "out") == sorted(f"{name}_x8.png" for name in expected)
    assert ("leave out" in result.err) == (len(expected) < 4)


def test_the_parts_of_the_documented_job_are_as_many_as_its_shards() -> None:
    yaml = pytest.importorskip("yaml", reason="reading the recipe needs pyyaml")
    text = (Path(__file__).parents[3] / "docs" / "many-machines.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    spec = yaml.safe_load(block)["spec"]
    words = spec["template"]["spec"]["containers"][0]["command"]
    assert words[:2] == ["tudsr", "upscale"]
    shard = words[words.index("--shard") + 1]
    for index in range(spec["completions"]):
        found = parse_shard(shard, {"JOB_COMPLETION_INDEX": str(index)})
        assert found == Shard(index + 1, spec["completions"], f"JOB_COMPLETION_INDEX={index}")


def test_patterns_do_not_touch_what_was_named(tudsr: Tudsr, tmp_path: Path) -> None:
    photo = draw(tmp_path / "a.png")
    assert tudsr("upscale", photo, "--exclude", "*").code == 0
    assert names(tmp_path) == ["a.png", "a_x8.png"]


def test_patterns_that_leave_nothing_are_said(tudsr: Tudsr, tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    result = tudsr("upscale", tmp_path, "--include", "*.jpeg")
    assert result.code == 4
    assert "no picture in this folder is left by --include and --exclude" in result.err


def test_patterns_are_of_this_case_everywhere() -> None:
    assert matches("raw/A.JPG", "*.JPG")
    assert not matches("raw/A.JPG", "*.jpg")
    assert not matches("raw/a.jpg", "/a.jpg")


def test_what_another_run_is_making_is_no_input(tmp_path: Path) -> None:
    """Between the file's name and its line in the record there is a moment."""
    draw(tmp_path / "a.png")
    result = draw(tmp_path / "a_x8.png")
    with claim(result):
        found = find_inputs([tmp_path])
        assert [source.path.name for source in found.sources] == ["a.png"]
    found = find_inputs([tmp_path])
    assert [source.path.name for source in found.sources] == ["a.png", "a_x8.png"]
