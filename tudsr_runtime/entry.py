"""What surrounds every command: streams that may fail, signals, and errors that become exit codes.

Every error that tudsr raises on purpose ends here, as one line and an exit code (`tudsr_runtime.errors`);
anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from types import FrameType
from typing import TYPE_CHECKING, Any

from tudsr_runtime.calls import end_process, ended_by_signals
from tudsr_runtime.errors import OutputError, TudsrError, UsageError
from tudsr_runtime.machine import as_exhausted
from tudsr_runtime.streams import failure_of, lenient_streams, printable_lines
from tudsr_runtime.terminal import BROKEN_PIPE_EXIT, Terminal, describe, failure

if TYPE_CHECKING:
    import typer


def run(app: typer.Typer) -> int:
    """Run the command line that the process was started with; the exit code."""
    _open_closed_streams()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    with lenient_streams(), ended_by_signals():
        return _run(app) or _report_stdout()


def _run(app: typer.Typer) -> int:
    """The exit code of the command."""
    try:
        code = app(standalone_mode=False)
    except SystemExit as stop:
        code = stop.code
    except Exception as error:
        return _report_usage(error) if hasattr(error, "show") else _report(error)
    return code if isinstance(code, int) else 0


def _report_stdout() -> int:
    """The exit code for results that stdout did not take; quietly where nobody reads any more."""
    failure = failure_of(sys.stdout)
    if failure is None:
        return 0
    if isinstance(failure, BrokenPipeError):
        return BROKEN_PIPE_EXIT
    return _report(OutputError(f"cannot write to stdout: {failure.strerror or failure}"))


def _open_closed_streams() -> None:
    """A shell may start a program with a stream closed (`2>&-`), for which Python has None.

    In its place: stdin is empty, stderr goes nowhere, writing to stdout fails. Each takes its old number,
    which would else be given to the next file that is opened, a result for instance.
    """
    for name, mode, access in (
        ("stdin", "r", os.O_RDONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, access), mode, encoding="utf-8"))  # noqa: SIM115


def _stop(number: int, _frame: FrameType | None) -> None:
    """End by the way of an exception, so that unfinished files are removed; at the second signal, at once."""
    signal.signal(number, lambda again, _: end_process(again))
    raise SystemExit(128 + number)


def _report_usage(error: Any) -> int:
    """What the parser says of a command line; a pattern of the shell may have put any file name there."""
    import typer

    said = io.StringIO()
    error.show(file=said)
    typer.echo(printable_lines(said.getvalue()), err=True, nl=False)
    # The options were not understood, so what was asked for is read off the words.
    if "--json" in sys.argv[1:]:
        Terminal().json(failure(UsageError(error.format_message())))
    return int(error.exit_code)


def _report(error: Exception) -> int:
    """The exit code of an error, which is told; of a bug, with its traceback."""
    import typer

    error = as_exhausted(error) or error
    deliberate = isinstance(error, TudsrError)
    if not deliberate or os.environ.get("TUDSR_DEBUG") == "1":
        typer.echo(printable_lines("".join(traceback.format_exception(error))), err=True, nl=False)
    if isinstance(error, TudsrError):
        typer.echo(describe(error), err=True)
        return error.exit_code
    typer.echo("error: this is a bug of tudsr; please report it with the lines above", err=True)
    return 1
