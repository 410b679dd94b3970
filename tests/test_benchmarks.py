"""Every benchmark starts the same way and stands in benchmarks/README.md."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from benchmarks import build_engines, plan_speed

ROOT = Path(__file__).parent.parent
MODULES = {path.stem: path for path in (ROOT / "benchmarks").glob("*.py")}
PROGRAMS = {name: path for name, path in MODULES.items() if "__main__" in path.read_text(encoding="utf-8")}


def test_every_program_says_how_it_is_started() -> None:
    assert len(PROGRAMS) >= 12
    for name, path in PROGRAMS.items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert f"python -m benchmarks.{name}" in text, name


def test_the_table_has_every_program_and_no_other() -> None:
    table = re.findall(
        r"^\| `(\w+)` \|", (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"), re.M
    )
    assert sorted(table) == sorted(PROGRAMS)


def test_documents_start_benchmarks_that_are_there() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *MODULES.values()]:
        text = path.read_text(encoding="utf-8")
        assert "python benchmarks/" not in text, path
        assert set(re.findall(r"-m benchmarks\.(\w+)", text)) <= {*PROGRAMS, "NAME"}, path
        for name in re.findall(r"benchmarks/(\w+)\.py", text):
            assert name in MODULES, path


def test_documented_builds_are_those_that_were_measured() -> None:
    """The tables of docs/tensorrt.md are made of the result files, by `--again`."""
    document = (ROOT / "docs" / "tensorrt.md").read_text(encoding="utf-8")
    results = sorted((ROOT / "benchmarks" / "results").glob("build_*.json"))
    assert len(results) >= 2
    for path in results:
        text = build_engines.markdown(json.loads(path.read_text(encoding="utf-8")))
        assert path.with_suffix(".md").read_text(encoding="utf-8") == text, path.name
        assert text.strip() in document, path.name


def test_tables_of_tiles_by_cost_are_those_that_were_measured() -> None:
    """Also the bar: 256 to 2048 px takes at least a fifth less, as its arithmetic does."""
    for path in (ROOT / "benchmarks" / "results").glob("plan_speed_*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert path.with_suffix(".md").read_text(encoding="utf-8") == plan_speed.markdown(record), path.name
    record = json.loads((ROOT / "benchmarks" / "results" / "plan_speed_full.json").read_text("utf-8"))
    own, *_, cheapest = record["rows"][-1]["ways"]
    for key in ("clock_s", "processor_s"):
        assert cheapest["by_tiles"][key] <= 0.8 * own["by_tiles"][key]
