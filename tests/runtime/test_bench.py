from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import cli
from tudsr_runtime.bench.latency import measure_latency
from tudsr_runtime.bench.measure import Durations, measure
from tudsr_runtime.bench.table3 import PUBLISHED, Row, row_record, table_markdown
from tudsr_runtime.errors import OutputError
from tudsr_runtime.tiling.cost import TileCosts
from tudsr_runtime.tiling.plan import plan_upscale
from tudsr_runtime.upscaler import Upscaler

MakeBundle = Callable[..., Path]


def test_percentiles_are_runs_that_happened() -> None:
    assert Durations.of([3.0, 1.0, 2.0]) == Durations(2, 3, 1, 3)
    assert Durations.of([float(x) for x in range(1, 11)]) == Durations(5, 9, 1, 10)
    assert Durations.of([4.0]).times(3) == Durations(12, 12, 12, 1)


def test_warm_up_is_run_and_not_counted() -> None:
    calls: list[int] = []
    assert measure(lambda: calls.append(1), warmup=2, repeats=3).n == 3
    assert len(calls) == 5


def test_parts_of_an_enlargement(make_bundle: MakeBundle, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    folder = make_bundle(tmp_path / "b", tile=64)
    with Upscaler(folder, backend="onnxruntime", threads=1, overlap=24) as upscaler:
        found = measure_latency(upscaler, 16, 12, 8, warmup=0, repeats=2)
    assert list(found.parts) == [
        *("decode", "resample", "blend", "colour"),
        *("encoder", "UNet", "decoder", "encode"),
    ]
    assert found.plan.tiles == upscaler.plan(16, 12, 8).tiles
    assert 0 < found.engines.min <= found.engines.p90
    assert found.file_to_file.n == 2


def test_the_table_runs_two_steps_even_if_the_bundle_is_good_for_one(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    folder = make_bundle(tmp_path / "b", tile=64)
    plan = {"psnr_db": 30, "ssim": 0.9, "texture": 1}
    document = json.loads((folder / "bundle.json").read_text())
    document["plans"] = [plan | {"scale": n, "factors": f"{n}x-"} for n in (4, 8)]
    (folder / "bundle.json").write_text(json.dumps(document))
    with Upscaler(folder, backend="onnxruntime", overlap=24) as upscaler:
        assert upscaler.plan(128, 128, 4).notation == "4x-"
        assert [row.plan(upscaler).notation for row in PUBLISHED] == ["2x2", "4x2", "2x2", "4x2"]


def test_the_table_never_hides_that_the_machine_is_another() -> None:
    rows = [
        Row(
            published,
            plan_upscale(published.side, published.side, published.scale),
            Durations(1, 2, 0.5, 3),
            Durations(2, 3, 1, 3),
        )
        for published in PUBLISHED
    ]
    table = table_markdown(rows, "Some CPU").splitlines()
    assert "different GPU: measured on Some CPU" in table[0]
    assert (
        table[-1] == "| 2048 x 2048 | 256 x 256, x8 | 4x2 | 9 of 512 px, 25 of 512 px |  "
        "| 1.0000 | 2.0000 | 3.0000 | 1.0000 | 2.2848 |"
    )
    assert len(table) == 6
    costs = TileCosts({(stage, tile): tile**2 / 2**18 for stage in (0, 1) for tile in (256, 512)})
    small = plan_upscale(128, 128, 4, tile=(512, 256), costs=costs)
    (*_, line) = table_markdown([dataclasses.replace(rows[0], plan=small)], "Some CPU").splitlines()
    assert "| 1 of 256 px, 1 of 512 px | 1.2 TMAC |" in line
    assert row_record(dataclasses.replace(rows[0], plan=small))["tmac"] == 1.25
    assert "different" not in table_markdown(rows, "NVIDIA H800 PCIe")


@pytest.mark.parametrize("name", ["latency", "table3"])
def test_commands_print_markdown_or_json_and_write_both(
    make_bundle: MakeBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    bundle = make_bundle(tmp_path / "b", tile=512)
    size = ["--size", "8"] if name == "latency" else []
    words = ["bench", name, "--bundle", str(bundle), "--backend", "onnxruntime", *size]
    cli.app([*words, "--warmup", "0", "--repeats", "1", "-o", str(tmp_path / "out")], standalone_mode=False)
    printed, said = capsys.readouterr()
    if name == "table3":
        assert re.match(r"about .* for 4 rows of 1 rounds\n", said[said.index("about") :])
    assert printed.rstrip() == (tmp_path / "out" / f"{name}.md").read_text().rstrip()
    record = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert record["facts"]["weights"] == "as exported"
    assert "onnxruntime on cpu" in record["facts"]["back end"]
    if name == "table3":
        assert [row["published"] for row in record["rows"]] == [row.seconds for row in PUBLISHED]
        assert [row["tiles"] for row in record["rows"]] == [2, 10, 10, 34]


def test_a_folder_that_cannot_be_made_is_an_output_error(make_bundle: MakeBundle, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    bundle = make_bundle(tmp_path / "b", tile=256)
    (tmp_path / "file").touch()
    words = ["bench", "latency", "--bundle", str(bundle), "--size", "16", "--warmup", "0", "--repeats", "1"]
    with pytest.raises(OutputError, match=r"cannot write .*file.reports: Not a directory"):
        cli.app([*words, "-o", str(tmp_path / "file" / "reports")], standalone_mode=False)
