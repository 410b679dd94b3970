"""Measured times of tiles: kept by machine and back end, and what the planner makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import cli
from tudsr_runtime import tile_times
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.engines.backend import Choice, Precision
from tudsr_runtime.tile_times import store_times, stored_times
from tudsr_runtime.upscaler import Upscaler

MakeBundle = Callable[..., Path]
HERE = Choice("onnxruntime", "cpu", "for the test", Precision("fp32", "for the test"))
PLACES = [(stage, tile) for stage in (0, 1) for tile in (128, 64)]
TIMES = {(0, 128): 1.0, (0, 64): 0.9, (1, 128): 1.0, (1, 64): 0.05}


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path / "cache"))
    folder = make_bundle(tmp_path / "b", tile=128, smaller=(64,), macs=lambda _, tile: tile, overlap=24)
    return open_bundle(folder)


def test_times_are_those_of_the_same_place_only(bundle: Bundle) -> None:
    said: list[str] = []
    assert stored_times(bundle, HERE, None, said.append) is None
    store_times(bundle, HERE, None, TIMES)
    found = stored_times(bundle, HERE, None, said.append)
    assert found is not None
    assert found.per_tile == TIMES
    assert found.unit == "s"
    assert stored_times(bundle, HERE, 2, said.append) is None
    for other in ({"backend": "openvino"}, {"device": "cuda"}, {"precision": Precision("bf16", "")}):
        assert stored_times(bundle, replace(HERE, **other), None, said.append) is None
    store_times(bundle, HERE, 2, dict.fromkeys(PLACES, 5.0))
    assert stored_times(bundle, HERE, None, said.append) == found, "the others stay"
    assert not said


def test_times_of_one_card_are_not_those_of_another(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two RTX 4090 differ in nothing that matters; a 4090 in the place of a 3060 does."""
    cards = ["NVIDIA GeForce RTX 3060, 12288 MiB"]
    monkeypatch.setattr(tile_times, "nvidia_smi", lambda query: {"name,memory.total": cards[0]}[query])
    on_gpu = replace(HERE, device="cuda:0")
    path = store_times(bundle, on_gpu, None, TIMES)
    assert stored_times(bundle, on_gpu, None, pytest.fail) is not None
    cards[0] = "NVIDIA GeForce RTX 4090, 24564 MiB"
    assert stored_times(bundle, on_gpu, None, pytest.fail) is None
    store_times(bundle, on_gpu, None, dict.fromkeys(PLACES, 2.0))
    cards[0] = "NVIDIA GeForce RTX 3060, 12288 MiB"
    found = stored_times(bundle, on_gpu, None, pytest.fail)
    assert found is not None
    assert found.per_tile == TIMES
    # a CPU's times go by the machine alone, and so does what was kept before cards were told apart
    earlier = json.loads(path.read_text())
    name = next(name for name in earlier if "3060" in name)
    path.write_text(json.dumps({name.replace(f" ({cards[0]})", ""): earlier[name]}))
    cards[0] = "NVIDIA GeForce RTX 4090, 24564 MiB"
    assert stored_times(bundle, on_gpu, None, pytest.fail) == found
    store_times(bundle, HERE, None, TIMES)
    assert not any("on cpu (" in name for name in json.loads(path.read_text()))


def test_times_of_some_sizes_alone_are_not_compared(bundle: Bundle) -> None:
    store_times(bundle, HERE, None, {place: s for place, s in TIMES.items() if place != (1, 64)})
    assert stored_times(bundle, HERE, None, pytest.fail) is None


@pytest.mark.parametrize(
    "content", [b"{", b'{"x": 1}', b"\xff", b"[]", b'{"x": {"0": {"64": 0}}}', b" " * 2**21]
)
def test_a_damaged_file_is_told_and_replaced(bundle: Bundle, content: bytes) -> None:
    path = store_times(bundle, HERE, None, TIMES)
    path.write_bytes(content)
    said: list[str] = []
    assert stored_times(bundle, HERE, None, said.append) is None
    assert len(said) == 1
    assert "tudsr bench tiles measures again" in said[0]
    store_times(bundle, HERE, None, TIMES)
    assert stored_times(bundle, HERE, None, pytest.fail) is not None


def test_the_planner_goes_by_times_where_there_are_any(bundle: Bundle) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")

    def tiles() -> list[tuple[int, int]]:
        with Upscaler(bundle, "onnxruntime", "cpu") as upscaler:
            return [(stage.columns.tile, stage.tiles) for stage in upscaler.plan(32, 32, 4, "2x2").stages]

    assert tiles() == [(64, 1), (128, 1)]
    store_times(bundle, HERE, None, TIMES)
    assert tiles() == [(64, 1), (64, 9)], "nine of 0.05 s are less than one of 1 s"
    store_times(bundle, HERE, None, TIMES | {(0, 64): 2.0, (1, 64): 0.2})
    assert tiles() == [(128, 1), (128, 1)]


def test_bench_tiles_measures_every_size_and_keeps_it(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    words = ["bench", "tiles", "--bundle", str(bundle.folder), "--backend", "onnxruntime", "--device", "cpu"]
    words += ["--warmup", "0", "--repeats", "1", "-o", str(tmp_path / "out")]
    cli.app(words, standalone_mode=False)
    rows = json.loads((tmp_path / "out" / "tiles.json").read_text())["tiles"]
    assert [(row["stage"] - 1, row["tile"]) for row in rows] == PLACES
    found = stored_times(bundle, HERE, None, pytest.fail)
    assert found is not None
    assert found.per_tile == {(row["stage"] - 1, row["tile"]): row["each"]["p50"] for row in rows}
    assert "sizes of tiles are chosen by it from now on" in capsys.readouterr().err
