"""Options that several commands with engines have: limits and help of each, once."""

from typing import Any

import typer


def backend_option(group: str | None = None) -> Any:
    """--backend, for a command whose help points to that of `tudsr upscale`; `group` as in its help."""
    return typer.Option(rich_help_panel=group, metavar="NAME", help="Engine library, as in `tudsr upscale`.")


def threads_option(group: str | None = None) -> Any:
    """--threads, an int or None."""
    text = "CPU threads.  [default: the engine library's choice]"
    return typer.Option(rich_help_panel=group, min=1, help=text)


def engines_option(group: str | None = None) -> Any:
    """--engines, a Path or None."""
    text = "TensorRT engines of `tudsr build -o DIR`.  [default: the cache's]"
    return typer.Option(rich_help_panel=group, metavar="DIR", help=text)
