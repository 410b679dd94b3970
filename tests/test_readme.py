"""Every command of the documentation: run where this machine can, else parsed against the command line.

Only fenced blocks marked `bash` count. A `tudsr` line is run, beside a copy of the examples, if the pictures
and bundles that it names are there; training and export need weights or hours and are parsed.
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from tests import tracked
from tests.tracked import ROOT

DOCUMENTS = [ROOT / "README.md", *(path for path in tracked.files("docs") if path.suffix == ".md")]
TUDSR = Path(sys.executable).with_name("tudsr")


def commands() -> list[tuple[str, str]]:
    """(document, line) of every line in a bash block, continuation lines joined."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(
            r"^ *```bash\n(.*?)^ *```", document.read_text(encoding="utf-8"), re.M | re.S
        ):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.strip().startswith("#"):
                    found.append((document.name, line.strip().partition("  #")[0].strip()))
    return found


TUDSR_LINES = sorted({line for _, line in commands() if line.startswith("tudsr ")})
RUN = [
    line
    for line in TUDSR_LINES
    if re.match(r"tudsr (upscale examples/|eval examples|bundle \w+ nano|doctor$|--)", line)
]
PARSED = [line for line in TUDSR_LINES if line not in RUN]


def test_the_documents_hold_both_kinds() -> None:
    assert len(RUN) >= 3
    assert len(PARSED) >= 3


@pytest.mark.parametrize("line", RUN)
def test_a_documented_command_runs(line: str, tmp_path: Path) -> None:
    tracked.copy(tmp_path, "examples")
    done = subprocess.run(
        [TUDSR, *shlex.split(line)[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for path in re.findall(r"^(?!\{)(\S+\.(?:png|jpg|webp))$", done.stdout, re.M):
        assert (tmp_path / path).is_file()


def test_the_first_command_can_be_given_again_and_leaves_nothing_to_commit(tmp_path: Path) -> None:
    (line,) = (line for _, line in commands() if " .venv/bin/tudsr " in line)
    tracked.copy(tmp_path, "examples")
    before = {*tmp_path.rglob("*")}
    for said in ("", "was made so by an earlier run"):
        words = [TUDSR, *shlex.split(line.partition(".venv/bin/tudsr ")[2])]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert said in done.stderr
    made = {str(path.relative_to(tmp_path)) for path in {*tmp_path.rglob("*")} - before}
    assert "examples/coffee_x8.png" in made
    assert made == {*tracked.ignored().match_files(made)}


@pytest.mark.parametrize("line", PARSED)
def test_a_documented_command_is_one(line: str) -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from cli import app
    finally:
        sys.path.pop(0)
    command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    context = command.make_context("tudsr", words)
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        context = command.make_context(name, rest, parent=context)


def option(words: list[str], *names: str) -> list[str]:
    return [after for word, after in itertools.pairwise(words) if word in names]


@pytest.mark.parametrize("document", ["README.md", "training.md", "nano.md"])
def test_training_and_export_are_one_script(document: str) -> None:
    """What a command reads is in the repository or written by one before; what it writes is neither."""
    there = {path.relative_to(ROOT).as_posix() for path in tracked.files()}
    there |= {parent.as_posix() for name in there for parent in Path(name).parents}
    brought = {"stable-diffusion-2-1-base", "nano"}
    made: list[str] = []
    lines = [line for name, line in commands() if name == document]
    for words in map(shlex.split, lines):
        words = words[words.index("train") - 1 :] if "train" in words else words
        reads, writes = [], []
        if words[1] == "train" and "--config" in words and not {"--print-config", "--check"} & {*words}:
            (name,) = option(words, "--config")
            config = yaml.safe_load((ROOT / name).read_text())
            reads = [config[key] for key in ("base", "start", "stage1") if key in config]
            writes = [config["out"]]
        elif words[1] == "export":
            reads, writes = option(words, "--base", "--stage1", "--stage2"), option(words, "-o")
        elif words[1] == "upscale":
            reads = option(words, "--bundle")
        assert {*reads} <= {*made, *there, *brought}, words
        replaced = {*writes} & there
        assert not replaced or "--overwrite" in words, f"{words} replaces {replaced}"
        made += writes
    assert made


@pytest.mark.parametrize("path", tracked.files("configs"), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_configuration_writes_to_what_git_ignores(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["out"].startswith(f"runs/{path.parent.name}/")
    assert tracked.ignored().match_file("runs/x")


def test_the_documented_python_runs(tmp_path: Path) -> None:
    tracked.copy(tmp_path, "examples")
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/pictures.md"))
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert blocks
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_ci_runs_the_documented_test_command_to_the_letter() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in ci if "pytest" in line and not line.startswith("#")]
    assert f"```bash\n{line}\n```" in readme


def test_the_table_of_quality_is_what_the_result_file_gives() -> None:
    rivals = importlib.import_module("benchmarks.rivals")
    record = json.loads((ROOT / "benchmarks" / "results" / "rivals.json").read_text())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = rivals.MARKS
    assert f"{begin}\n{rivals.readme_table(record)}\n{end}" in readme
    whole = (ROOT / "benchmarks" / "results" / "rivals.md").read_text(encoding="utf-8")
    assert whole == rivals.markdown(record)


def test_links_lead_somewhere() -> None:
    for document in [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
