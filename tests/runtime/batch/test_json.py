"""`--json`: every line of stdout is an object, whatever becomes of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runtime.batch.drawn import draw
from tests.runtime.conftest import Tudsr
from tudsr_runtime.batch import command


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
