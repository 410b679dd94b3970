"""What `tudsr doctor` finds, in words that may be pasted anywhere: no name of user, files or host."""

from __future__ import annotations

import getpass
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tudsr_runtime.files import cache_folder

Status = Literal["ok", "note", "problem"]
"""`note`: tudsr works, but not so or not there. `problem`: what was asked for does not work."""

_ABSOLUTE = re.compile(
    r"""(?<![\w.<>~/\\:])(?:[A-Za-z]:)?[\\/](?:[^\s\\/:'",;()\[\]]+[\\/])*[^\s\\/:'",;()\[\]]*"""
)
_TRAILING_SEPARATORS = re.compile(r"[\\/]+$")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what it is, how it is, and what to do where it is not well."""

    check: str
    text: str
    status: Status = "ok"
    hint: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)


class Anonymous:
    """Takes out of a text what is the user's own: folders, the name of the user and of the host.

    Args:
        folders: further folders that are the user's, and what to call them.
    """

    def __init__(self, folders: Iterable[tuple[Path, str]] = ()) -> None:
        known = {
            **{_plain(path): name for path, name in folders},
            _plain(cache_folder()): "<cache>",
            _plain(Path(__file__).parents[2]): "<tudsr>",
            _plain(Path(sys.prefix)): "<environment>",
            _plain(Path(tempfile.gettempdir())): "<temporary>",
            _plain(Path.cwd()): "<here>",
            _plain(Path.home()): "~",
        }
        self._folders = sorted(((p, n) for p, n in known.items() if len(p) > 1), key=lambda one: -len(one[0]))
        self._names = [
            (name, put) for name, put in ((_user(), "<user>"), (platform.node(), "<host>")) if name
        ]

    def text(self, text: str) -> str:
        """The text with `<cache>`, `~` or `<host>` in the place of names; of other paths only their ends."""
        for folder, name in self._folders:
            text = re.sub(re.escape(folder) + r"(?![\w.-])", name, text)
        text = _ABSOLUTE.sub(lambda found: _last(found[0]), text)
        for name, put in self._names:
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", put, text)
        return text

    def finding(self, finding: Finding) -> Finding:
        """The finding, with what is said in it made anonymous."""
        hint = None if finding.hint is None else self.text(finding.hint)
        return Finding(finding.check, self.text(finding.text), finding.status, hint, finding.facts)


def _plain(path: Path) -> str:
    return _TRAILING_SEPARATORS.sub("", str(path))


def _last(path: str) -> str:
    name = re.split(r"[\\/]", _TRAILING_SEPARATORS.sub("", path))[-1]
    return f"<...>/{name}" if name else path


def _user() -> str:
    """The name of the user, unless it is one that says nothing and would be found everywhere."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):
        name = os.environ.get("USER", "")
    return "" if name in ("root", "user", "admin", "tudsr") else name
