"""The paper's metrics through a pyiqa that has the same interface and draws its scores from file sizes.

The real one is not installed here: its licence is non-commercial, and its weights come from the network.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from cli import app
from tests.runtime.conftest import write_bundle
from tudsr_eval.paper import PAPER, VERSION, laid_out, published_of
from tudsr_runtime.errors import DeviceError, UsageError

FAKE = """
import os, random
__version__ = {version!r}
MODES = {{"lpips": 2, "fid": 2}}
IDS = ["lpips", "fid", "clipiqa", "clipiqa+", "nima", "niqe", "liqe", "musiq", "maniqa-pipal"]

class Metric:
    def __init__(self, name):
        self.name = name

    def __call__(self, target, ref=None, **kwargs):
        assert (ref is not None) == (self.name in MODES), self.name
        with open({log!r}, "a") as log:
            log.write(self.name + "\\n")
        if self.name == "fid":
            assert os.path.isdir(target) and os.path.isdir(ref)
            return 100.0 + len(os.listdir(target))
        if os.path.exists({stop!r}) and self.name == "musiq":
            raise SystemExit(9)
        drawn = random.random() if self.name == "maniqa-pipal" else 0
        return os.path.getsize(target) / 1e6 + IDS.index(self.name) + drawn

def create_metric(name, as_loss=False, device=None, **kwargs):
    if name not in IDS:
        raise KeyError(name)
    return Metric(name)
"""


class Fake:
    """An environment's Python that finds the fake pyiqa."""

    def __init__(self, folder: Path, version: str = VERSION) -> None:
        (folder / "site" / "pyiqa").mkdir(parents=True)
        self.log, self.stop = folder / "calls", folder / "stop"
        source = FAKE.format(version=version, log=str(self.log), stop=str(self.stop))
        (folder / "site" / "pyiqa" / "__init__.py").write_text(source)
        self.python = folder / "python"
        self.python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder / "site"}" exec "{sys.executable}" "$@"\n')
        self.python.chmod(0o755)

    def calls(self) -> list[str]:
        found = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return found


def run(pictures: Path, python: Path, *words: str) -> None:
    app(
        ["eval", str(pictures / "bicubic"), str(pictures / "nearest"), "--reference", str(pictures / "HR"),
         "--input", str(pictures / "LR"), "--metrics", "psnr,paper", "-o", str(pictures / "out"),
         "--page-pictures", "0", "--paper-python", str(python), *words],
        standalone_mode=False,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="the environment's Python is a shell script here")
class TestWithAFakePyiqa:
    def test_scores_tables_and_facts(
        self, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake = Fake(tmp_path / "env")
        cache = tmp_path / "weights" / "torch" / "hub"
        cache.mkdir(parents=True)
        (cache / "musiq.pth").write_bytes(b"weights")
        words = ("--paper-dataset", "RealSR", "--weights", str(tmp_path / "weights"))
        run(pictures, fake.python, *words)
        printed = capsys.readouterr().out
        calls = fake.calls()
        assert calls.count("musiq") == calls.count("lpips") == 6
        assert calls.count("maniqa-pipal") == 18, "three seeds each"
        assert calls.count("fid") == 2
        table = printed[printed.index("The paper's Table 1, RealSR") :]
        assert "| OSEDiff |" in table
        assert "| **bicubic** | **nearest** |" in table
        line = next(line for line in table.splitlines() if line.startswith("| FID"))
        assert line.endswith("| 111.42 | 103.00 | 103.00 |")
        records = [json.loads(x) for x in (pictures / "out" / "scores.jsonl").read_text().splitlines()]
        size = (pictures / "bicubic" / "coffee_x4.png").stat().st_size
        assert records[2]["scores"]["paper musiq"] == pytest.approx(7 + size / 1e6)
        hashes = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])["weights"]
        assert hashes == {"hub/musiq.pth": hashlib.sha256(b"weights").hexdigest()}

    def test_a_run_that_was_stopped_goes_on(self, pictures: Path, tmp_path: Path) -> None:
        fake = Fake(tmp_path / "env")
        fake.stop.touch()
        with pytest.raises(DeviceError, match="ended with 9"):
            run(pictures, fake.python)
        assert fake.calls().count("niqe") == 6
        with (pictures / "out" / "paper.jsonl").open("a") as file:
            file.write('{"id": "musiq", "key": "cut sho')
        fake.stop.unlink()
        run(pictures, fake.python)
        assert {*fake.calls()} == {"musiq", "maniqa-pipal"}
        run(pictures, fake.python)
        assert fake.calls() == []
        run(pictures, fake.python, "--seed", "1")
        assert len(fake.calls()) > 20, "another seed is another score"

    def test_drawn_scores_depend_on_the_seed_alone(self, pictures: Path, tmp_path: Path) -> None:
        fake, found = Fake(tmp_path / "env"), []
        for _ in range(2):
            run(pictures, fake.python)
            lines = (pictures / "out" / "paper.jsonl").read_text().splitlines()
            found.append([x["value"] for x in map(json.loads, lines) if x.get("id") == "maniqa-pipal"])
            assert all(x["spread"] > 0 for x in map(json.loads, lines) if x.get("id") == "maniqa-pipal")
            (pictures / "out" / "paper.jsonl").unlink()
        assert found[0] == found[1]

    def test_another_version_is_refused(self, pictures: Path, tmp_path: Path) -> None:
        with pytest.raises(DeviceError, match=rf"0\.1\.9; the scores are defined by {VERSION}"):
            run(pictures, Fake(tmp_path / "env", "0.1.9").python)

    def test_the_ablation_has_the_papers_rows(
        self, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("onnx", reason="building the test's bundle needs onnx")
        words = [
            write_bundle(tmp_path / "bundle", tile=256), pictures / "LR", "-o", pictures / "out",
            "--reference", pictures / "HR", "--device", "cpu", "--metrics", "psnr,paper",
            "--paper-python", Fake(tmp_path / "env").python, "--paper-dataset", "RealSR",
        ]  # fmt: skip
        app(["eval", "ablation", *map(str, words)], standalone_mode=False)
        printed = capsys.readouterr().out
        table = printed[printed.index("The paper's Table 4") :].splitlines()[2:]
        rows = [row.split("|")[1].strip() for row in table[2:8]]
        assert rows == ["M4", "N4", "M2N2", "**M4**", "**N4**", "**M2N2**"]
        other = ["eval", "ablation", *map(str, words), "--scale", "8"]
        with pytest.raises(UsageError, match="of another scale"):
            app(other, standalone_mode=False)
        before = (pictures / "out" / "M4" / "coffee_x4.png").stat().st_mtime_ns
        app(["eval", "ablation", *map(str, words)], standalone_mode=False)
        assert (pictures / "out" / "M4" / "coffee_x4.png").stat().st_mtime_ns == before


def test_without_a_python_or_a_folder_it_says_what_is_needed(pictures: Path) -> None:
    words = ["eval", str(pictures / "HR"), "--metrics", "paper"]
    with pytest.raises(UsageError) as error:
        app(words, standalone_mode=False)
    assert error.value.hint == "-o FOLDER"
    with pytest.raises(UsageError) as error:
        app([*words, "-o", str(pictures / "out")], standalone_mode=False)
    assert f"pyiqa=={VERSION}" in str(error.value.hint)
    with pytest.raises(DeviceError, match="cannot be run"):
        app([*words, "-o", str(pictures / "out"), "--paper-python", "absent"], standalone_mode=False)


def test_a_python_without_pyiqa_is_told_apart(pictures: Path) -> None:
    words = ["eval", str(pictures / "HR"), "--metrics", "paper", "-o", str(pictures / "out")]
    with pytest.raises(DeviceError, match="pyiqa cannot be imported") as error:
        app([*words, "--paper-python", sys.executable], standalone_mode=False)
    assert "iqa/bin/pip install" in str(error.value.hint)


def test_the_papers_own_figures() -> None:
    assert published_of("1", "RealSR")["OSEDiff"]["lpips"] == 0.2921
    assert published_of("2", "RealLQ250")["TUDSR-S"]["musiq"] == 63.2129
    # the method of Tables 1 and 2 is a row of the ablations
    for table, ablation, row in (("1", "4", "M2N2"), ("2", "5", "M4N2")):
        for dataset in ("RealSR", "DRealSR", "RealLQ250"):
            ours, again = published_of(table, dataset)["TUDSR-S"], published_of(ablation, dataset)[row]
            assert {name: ours[name] for name in again} == again
    with pytest.raises(UsageError, match="no Set5") as error:
        published_of("1", "Set5")
    assert "DRealSR" in str(error.value.hint)


def test_both_layouts() -> None:
    rows = {"A": {"niqe": 5.0, "musiq": 60.0}, "B": {"niqe": 4.0}}
    assert laid_out(rows, ["niqe", "musiq"], across=True).splitlines() == [
        "| metric | A | B |", "| --- | --- | --- |",
        "| NIQE ↓ | 5.0000 | 4.0000 |", "| MUSIQ ↑ | 60.0000 | - |",
    ]  # fmt: skip
    assert laid_out(rows, ["niqe"], across=False).splitlines()[2:] == ["| A | 5.0000 |", "| B | 4.0000 |"]
    assert list(PAPER) == ["lpips", "fid", "clipiqa", "clipiqa+", "nima", "niqe", "liqe", "musiq", "maniqa"]
