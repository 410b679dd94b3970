"""`tudsr doctor`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from tudsr_runtime.doctor.back_ends import check_back_ends, check_bundle, named_folders
from tudsr_runtime.doctor.findings import Anonymous, Finding
from tudsr_runtime.doctor.machine import cache, gpus, processor_and_memory, versions
from tudsr_runtime.errors import DeviceError
from tudsr_runtime.terminal import Terminal, counted


def doctor(bundle: str, as_json: bool) -> None:
    """Look at the machine and print each finding once it is made, so that a crash shows what it was at.

    Raises:
        DeviceError: something that tudsr needs, or the bundle that was named, is not in order.
    """
    terminal, anonymous, seen = Terminal(), Anonymous(named_folders(bundle)), Counter[str]()
    for found in findings(bundle):
        finding = anonymous.finding(found)
        seen[finding.status] += 1
        if as_json:
            terminal.json(asdict(finding))
        else:
            terminal.result(as_lines(finding))
    if seen["problem"]:
        hints = "what is said at each line marked PROBLEM" if not as_json else 'each "hint"'
        raise DeviceError(f"{counted(seen['problem'], 'problem')} found", hint=hints)
    terminal.note(f"no problem found, {counted(seen['note'], 'note')}")


def findings(bundle: str) -> Iterator[Finding]:
    """The findings on everything that is looked at, cheap things first."""
    yield from versions()
    yield from processor_and_memory()
    yield from gpus()
    yield from cache()
    finding, opened = check_bundle(bundle)
    yield finding
    yield from check_back_ends(opened)


def as_lines(finding: Finding) -> str:
    """A finding for people: its status, what was looked at, how it is; below that what to do."""
    status = finding.status.upper() if finding.status == "problem" else finding.status
    line = f"{status:<8} {finding.check}: {finding.text}"
    return f"{line}\n{'':<8} Try: {finding.hint}" if finding.hint else line
