"""`tudsr doctor`: what it looks at, what it makes of it, and what it does not tell."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.conftest import FakeEngine, Result, Tudsr
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.doctor import machine
from tudsr_runtime.doctor.back_ends import check_back_ends, try_tile
from tudsr_runtime.doctor.findings import Anonymous
from tudsr_runtime.engines.backend import Precision, Unavailable
from tudsr_runtime.engines.select import BY_NAME, ON_REQUEST, PREFERENCE
from tudsr_runtime.errors import DeviceError


def records(result: Result) -> dict[str, dict[str, Any]]:
    """The findings by what was looked at."""
    return {str(one["check"]): dict(one) for one in result.records if "check" in one}


def test_everything_is_looked_at_and_a_tile_is_run_wherever_it_can(tudsr: Tudsr, small_bundle: Path) -> None:
    result = tudsr("doctor", "--json", "--bundle", small_bundle)
    assert result.code == 0, result.err
    found = records(result)
    assert {"tudsr", "packages", "processor", "cache", "bundle"} <= {*found}
    for name, device in (*PREFERENCE, *BY_NAME, *ON_REQUEST):
        one = found[f"{name} on {device}"]
        assert one["hint"] if one["status"] == "note" else f"tile, {name} on {device}" in found
    timed = [one["facts"]["seconds"] for check, one in found.items() if check.startswith("tile, ")]
    assert timed
    assert min(timed) > 0


def test_for_people_each_finding_is_a_line_with_what_to_do_below(tudsr: Tudsr, small_bundle: Path) -> None:
    result = tudsr("doctor", "--bundle", small_bundle)
    assert result.code == 0
    for line in result.out.splitlines():
        assert re.match(r"(ok|note|PROBLEM) +[\w, -]+: .|         Try: ", line), line
    assert re.search(r"^note +tensorrt on cuda: .+\n +Try: ", result.out, re.M)


def test_nothing_of_the_users_is_told(
    tudsr: Tudsr, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path / "private-cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    damaged = tmp_path / "my secret bundle"
    damaged.mkdir()
    (damaged / "bundle.json").write_text("{")
    for bundle in (small_bundle, damaged, tmp_path / "no bundle"):
        result = tudsr("doctor", "--bundle", bundle)
        for told in ("secret", "private", "alice", str(tmp_path), str(small_bundle), "no bundle'"):
            assert told not in result.out + result.err


NAMES = st.text("abcxyzABC01-_.", min_size=3, max_size=12).filter(lambda name: name.strip("."))


@given(
    folders=st.lists(NAMES, min_size=1, max_size=4), file=NAMES, quote=st.sampled_from(["", "'", '"', "("])
)
def test_of_a_path_the_last_part_alone_is_left(folders: list[str], file: str, quote: str) -> None:
    hidden = [f"private{number}{name}" for number, name in enumerate(folders)]
    path = "/" + "/".join([*hidden, f"public{file}"])
    said = Anonymous().text(f"libcuda.so: cannot open {quote}{path}: No such file")
    assert "private" not in said
    assert f"public{file}" in said
    assert said.startswith("libcuda.so: cannot open ")


def test_a_folder_with_spaces_is_known_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "my own pictures"
    anonymous = Anonymous([(folder, "<bundle>")])
    assert anonymous.text(f"{folder}/bundle.json is gone") == "<bundle>/bundle.json is gone"
    assert anonymous.text("0.5 s and/or 2 s, 512 x 512") == "0.5 s and/or 2 s, 512 x 512"


def test_two_packages_of_one_module_are_a_problem(
    tudsr: Tudsr, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"onnxruntime": "1.30", "onnxruntime-gpu": "1.30"}
    monkeypatch.setattr(machine, "versions_of", lambda _: both)
    result = tudsr("doctor", "--bundle", small_bundle)
    assert result.code == 6
    assert "PROBLEM  onnxruntime: onnxruntime and onnxruntime-gpu are installed over each other" in result.out
    assert "pip uninstall onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu" in result.out
    assert "error: 1 problem found" in result.err


def test_a_damaged_bundle_is_a_problem_and_back_ends_are_probed_all_the_same(
    tudsr: Tudsr, small_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "bundle.json").write_text((small_bundle / "bundle.json").read_text())
    result = tudsr("doctor", "--json", "--bundle", tmp_path / "b")
    assert result.code == 6
    found = records(result)
    assert found["bundle"]["status"] == "problem"
    assert "openvino on cpu" in found
    assert not [check for check in found if check.startswith("tile, ")]


class Broken:
    """A back end that can be found and not be used."""

    def __init__(self, there: bool) -> None:
        self.there = there

    def probe(self, device: str) -> Unavailable | None:
        return None if self.there else Unavailable(f"no {device} here", f"buy {device}")

    def precision(self, *_: object) -> Precision:
        return Precision("fp32", "the only one")

    def load(self, *_: object) -> FakeEngine:
        raise DeviceError("the driver is asleep", hint="wake it")


def test_where_nothing_runs_that_is_the_problem(install_backend: Callable[[Any], None]) -> None:
    install_backend(Broken(there=False))
    *others, last = check_back_ends(None)
    assert {one.status for one in others} == {"note"}
    assert (last.status, last.hint) == ("problem", "buy cpu")


def test_a_back_end_that_fails_is_a_problem_unless_its_engines_are_not_built(
    install_backend: Callable[[Any], None], small_bundle: Path
) -> None:
    install_backend(Broken(there=True))
    bundle = open_bundle(small_bundle)
    wrong = try_tile(bundle, *PREFERENCE[-1])
    assert (wrong.status, wrong.text, wrong.hint) == ("problem", "the driver is asleep", "wake it")
    assert try_tile(bundle, *BY_NAME[0]).status == "note"


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        (
            "NVIDIA GeForce RTX 4090, 580.65.06, 24564 MiB, 8.9",
            "ok",
            "CUDA 13 and 12; engines of TensorRT for",
        ),
        ("Tesla V100-SXM2-16GB, 535.183.01, 16384 MiB, 7.0", "ok", "CUDA 12; engines of TensorRT, not"),
        ("NVIDIA GeForce RTX 3090, 470.256.02, 24576 MiB, 8.6", "problem", "too old for CUDA 12"),
        ("something else", "problem", "too old for CUDA 12"),
    ],
)
def test_what_a_gpu_can_run_follows_from_driver_and_capability(line: str, status: str, said: str) -> None:
    found = machine.gpu_finding(0, line, {})
    assert found.status == status
    assert said in found.text


@pytest.mark.parametrize(
    ("driver", "installed", "wrong"),
    [
        ("570.86.10", {"tensorrt-rtx-cu13": "1.7.1.116", "cuda-bindings": "13.5.0"}, "need CUDA 13"),
        ("570.86.10", {"tensorrt-rtx-cu12": "1.7.1.116", "cuda-bindings": "13.0.3"}, "needs CUDA 13"),
        ("570.86.10", {"tensorrt-rtx-cu12": "1.7.1.116", "cuda-bindings": "12.9.10"}, None),
        ("580.65.06", {"tensorrt-cu13": "11.4.0.106", "cuda-bindings": "13.5.0"}, None),
    ],
)
def test_packages_that_need_a_later_driver_are_a_problem(
    driver: str, installed: dict[str, str], wrong: str | None
) -> None:
    line = f"NVIDIA GeForce RTX 4090, {driver}, 24564 MiB, 8.9"
    found = machine.gpu_finding(0, line, installed)
    assert found.status == ("problem" if wrong else "ok")
    assert wrong is None or (wrong in found.text and "a driver of 580 or later" in str(found.hint))


def test_features_of_the_processor(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16 amx_tile foo\n\nprocessor\t: 1\n")
    assert machine.processor_features(file) == {"avx2", "amx_bf16", "amx_tile"}
    file.write_text("Features\t: fp asimd bf16 i8mm\n")
    assert machine.processor_features(file) == {"asimd", "bf16", "i8mm"}
    assert machine.processor_features(tmp_path / "none") == set()


@pytest.mark.skipif(sys.platform == "win32", reason="needs folders that cannot be written by their mode")
def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path / "cache"))
    assert [one.status for one in machine.cache()] == ["ok"]
    assert not (tmp_path / "cache").exists(), "looking is not making"
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path))
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "a.plan").write_bytes(b"12345")
    (finding,) = machine.cache()
    assert (finding.status, finding.facts) == ("ok", {"engines": 5})

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine, "tempfile", SimpleNamespace(TemporaryFile=refuse))
    (finding,) = machine.cache()
    assert (finding.status, finding.hint) == ("note", "TUDSR_CACHE=DIR")
    assert "Permission denied" in finding.text


def test_every_finding_is_json(tudsr: Tudsr, small_bundle: Path) -> None:
    for line in tudsr("doctor", "--json", "--bundle", small_bundle).out.splitlines():
        assert {"check", "text", "status", "hint", "facts"} == {*json.loads(line)}
