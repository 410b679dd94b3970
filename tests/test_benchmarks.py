"""Every benchmark starts the same way and stands in benchmarks/README.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

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
