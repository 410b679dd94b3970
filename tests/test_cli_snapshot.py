"""The command line is a contract: a change of it shows up as a change of tests/cli_snapshot.txt.

After a deliberate change: TUDSR_UPDATE_SNAPSHOT=1 python -m pytest tests/test_cli_snapshot.py
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.models import ArgumentInfo

import cli
from tudsr_runtime.engines.select import BACKENDS, DEVICES
from tudsr_runtime.tiling.color import COLOR_METHODS
from tudsr_runtime.upscaler import Upscaler

SNAPSHOT = Path(__file__).with_name("cli_snapshot.txt")


@dataclass(frozen=True)
class Parameter:
    """An option or argument, as the signature of its command declares it."""

    name: str
    kind: Any
    info: Any
    default: Any

    def __str__(self) -> str:
        if isinstance(self.info, ArgumentInfo):
            names = f"argument {self.info.metavar}"
        else:
            # Within Annotated, typer takes the first name in the place of the default.
            given = [one for one in (self.info.default, *self.info.param_decls) if isinstance(one, str)]
            names = ", ".join(given or [f"--{self.name.replace('_', '-')}"])
        kind = inspect.formatannotation(self.kind).replace("pathlib._local.", "").replace("pathlib.", "")
        required = self.default is inspect.Parameter.empty
        limits = [
            f"{side} {value}" for side in ("min", "max") if (value := getattr(self.info, side)) is not None
        ]
        return "  ".join([names, kind, "required" if required else f"default {self.default!r}", *limits])


def parameters(callback: Callable[..., Any]) -> Iterator[Parameter]:
    for one in inspect.signature(callback, eval_str=True).parameters.values():
        kind, info = get_args(one.annotation)
        yield Parameter(one.name, kind, info, one.default)


def commands(app: typer.Typer, name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    for command in app.registered_commands:
        yield f"{name} {command.name or command.callback.__name__}", command.callback
    for group in app.registered_groups:
        yield from commands(group.typer_instance, f"{name} {group.name}")


def everything() -> dict[str, Callable[..., Any]]:
    return {"tudsr": cli.app.registered_callback.callback, **dict(commands(cli.app, "tudsr"))}


def upscale_option(name: str) -> Parameter:
    return next(parameter for parameter in parameters(cli.upscale) if parameter.name == name)


def test_commands_and_options_are_frozen() -> None:
    lines = []
    for name, callback in sorted(everything().items()):
        lines += [name, *sorted(f"    {parameter}" for parameter in parameters(callback))]
    current = "\n".join(lines) + "\n"
    if os.environ.get("TUDSR_UPDATE_SNAPSHOT") == "1":
        SNAPSHOT.write_text(current, encoding="utf-8")
    assert current == SNAPSHOT.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["bundle", "backend", "device", "threads", "overlap", "color"])
def test_defaults_are_those_of_the_python_interface(name: str) -> None:
    assert upscale_option(name).default == inspect.signature(Upscaler).parameters[name].default


@pytest.mark.parametrize(
    ("option", "names"), [("backend", BACKENDS), ("device", DEVICES), ("color", COLOR_METHODS)]
)
def test_help_names_every_choice(option: str, names: tuple[str, ...]) -> None:
    for name in names:
        assert name in upscale_option(option).info.help


@pytest.mark.parametrize("name", sorted(everything()))
def test_every_command_and_option_is_explained(name: str) -> None:
    callback = everything()[name]
    assert name == "tudsr" or callback.__doc__
    for parameter in parameters(callback):
        assert isinstance(parameter.info, ArgumentInfo) or parameter.info.help, parameter.name
