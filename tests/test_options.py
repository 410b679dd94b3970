"""Options from the fields of a dataclass, as `from_options` gives them to Typer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from tudsr_runtime.options import from_options


@dataclass(frozen=True)
class Options:
    needed: Annotated[Path, typer.Option("-n", "--needed", help="A file.")]
    many: Annotated[tuple[int, ...], typer.Option(min=1, help="Numbers.")] = ()
    kind: Annotated[Literal["a", "b"], typer.Option(help="One of two.")] = "a"
    format: Annotated[str | None, typer.Option("--form", help="Under another name.")] = None


made: list[tuple[list[str], Options]] = []
app = typer.Typer(add_completion=False)


@app.command()
@from_options
def run(names: Annotated[list[str], typer.Argument(metavar="NAME...")], options: Options) -> None:
    """What it does."""
    made.append((names, options))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["x", "-n", "f"], Options(Path("f"))),
        (["x", "-n", "f", "--many", "1", "--many", "2", "--kind", "b"], Options(Path("f"), (1, 2), "b")),
        (["x", "--needed", "f", "--form", "png"], Options(Path("f"), format="png")),
    ],
)
def test_a_command_gets_its_own_arguments_and_the_dataclass(words: list[str], expected: Options) -> None:
    made.clear()
    assert CliRunner().invoke(app, words).exit_code == 0
    assert made == [(["x"], expected)]


@pytest.mark.parametrize(
    "words", [["x"], ["-n", "f"], ["x", "-n", "f", "--many", "0"], ["x", "-n", "f", "--kind", "c"]]
)
def test_what_the_fields_do_not_allow_is_refused(words: list[str]) -> None:
    assert CliRunner().invoke(app, words).exit_code == 2


def test_the_help_is_that_of_fields_and_docstring() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    for text in ("What it does.", "A file.", "Numbers.", "--form"):
        assert text in shown
