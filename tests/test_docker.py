"""The Dockerfile: its commands are tudsr's, its extras are there, and it runs as nobody special."""

from __future__ import annotations

import json
import re
import shlex
import tomllib

import typer

import cli
from tests.tracked import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = [line for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def parsed(words: list[str]) -> None:
    """Parse a command line of tudsr; SystemExit if it is none."""
    command = typer.main.get_command(cli.app)
    context = command.make_context("tudsr", words)
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        context = command.make_context(name, rest, parent=context)


def test_it_has_both_targets_and_neither_runs_as_root() -> None:
    assert "useradd --uid 1000 " in TEXT
    targets = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM|\Z)", TEXT, re.M | re.S))
    assert {*targets} == {"base", "cpu", "cuda"}
    for name in ("cpu", "cuda"):
        assert "\nUSER 1000\n" in targets[name]


def test_its_extras_are_those_of_the_package_and_never_both_onnxruntimes() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    lists = [found.split(",") for found in re.findall(r'pip install "/src\[([\w,]+)\]"', TEXT)]
    assert len(lists) == 2
    for wanted in lists:
        assert {*wanted} <= {*extras}
        assert not {"cpu", "gpu"} <= {*wanted}
        assert "serve" in wanted


def test_it_runs_the_service_by_default_and_asks_it_for_its_health() -> None:
    (entry,) = (
        json.loads(line.removeprefix("ENTRYPOINT ")) for line in LINES if line.startswith("ENTRYPOINT")
    )
    (words,) = (json.loads(line.removeprefix("CMD ")) for line in LINES if line.startswith("CMD"))
    assert entry == ["tudsr"]
    assert words[0] == "serve"
    parsed(words)
    (check,) = (line for line in LINES if line.startswith("HEALTHCHECK"))
    assert ":8000/healthz" in check


def test_all_that_the_package_is_built_from_gets_into_the_image() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, wheel = build["project"], build["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], wheel["hooks"]["custom"]["path"]}
    needed |= {project["readme"], *project["license-files"], "pyproject.toml"}
    assert kept == needed


def test_documented_commands_are_commands() -> None:
    text = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
    commands = [
        line.split("tudsr:cpu ", 1)[1]
        for line in text.splitlines()
        if "tudsr:cpu " in line and " run " in line
    ]
    assert len(commands) == 3
    for line in commands:
        parsed(shlex.split(line))
