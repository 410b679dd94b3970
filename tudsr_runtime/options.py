"""Commands for Typer: made from the dataclasses that declare their options, with what all of them share."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption


class Grouped(TyperCommand):
    """A command whose help lists its options in groups, in plain text, as they are declared."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one list for each `rich_help_panel`, what has none as "Options"."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            default = "Options" if isinstance(parameter, TyperOption) else "Arguments"
            if record is not None:
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
        for name in sorted(groups, key=lambda name: (name != "Arguments", name == "Options")):
            with formatter.section(name):
                formatter.write_dl(groups[name])


def command_group(help_text: str, add_completion: bool = False) -> typer.Typer:
    """A group of commands that prints its help, in plain text, where none is named."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=add_completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def from_options(command: Callable[..., None], without: Sequence[str] = ()) -> Callable[..., None]:
    """A command for Typer, whose parameter `options`, a dataclass, is replaced by the fields of it.

    A field `Annotated[tuple[str, ...], typer.Option(...)]` is an option that may be repeated. Fields named in
    `without` keep their defaults.
    """
    own = typing.get_type_hints(command, include_extras=True)
    kind = own["options"]
    hints = typing.get_type_hints(kind, include_extras=True)
    types = {name: hint for name, hint in hints.items() if name not in without}
    repeated = {
        name for name, found in types.items() if typing.get_origin(typing.get_args(found)[0]) is tuple
    }
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name != "options":
            parameters.append(parameter.replace(annotation=own[parameter.name]))
            continue
        for field in (field for field in dataclasses.fields(kind) if field.name in types):
            of, help_text = typing.get_args(types[field.name])
            if field.name in repeated:
                of = list[typing.get_args(of)[0]]  # type: ignore[misc]  # all that Typer repeats
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            parameters.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=[] if default == () else default,
                    annotation=Annotated[of, help_text],
                )
            )

    def run(**given: Any) -> None:
        values = {name: given.pop(name) for name in types}
        with failures_as_json(values.get("as_json", False)):
            command(**given, options=kind(**values | {name: tuple(values[name]) for name in repeated}))

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


@contextmanager
def failures_as_json(wanted: bool) -> Iterator[None]:
    """Where JSON is wanted, write what ends the command to stdout as an object, too."""
    from tudsr_runtime.terminal import Terminal, failure, was_told

    try:
        yield
    except (Exception, SystemExit) as error:
        ended = isinstance(error, SystemExit) and not (isinstance(error.code, int) and error.code > 128)
        if wanted and not ended and not was_told(error):
            Terminal().json(failure(error))
        raise


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """In the block, a package that is missing is an error that says which extra brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        from tudsr_runtime.errors import DeviceError
        from tudsr_runtime.installation import install_hint

        package = (error.name or "").partition(".")[0]
        if package.startswith("tudsr"):
            raise
        raise DeviceError(f"the package {package} is not installed", hint=install_hint(extra)) from error


def named_path(text: str) -> Path:
    """A path that the user named; the empty one, of an unset variable, would be the present folder."""
    if not text:
        raise typer.BadParameter("an empty name is no picture and no folder")
    return Path(text)
