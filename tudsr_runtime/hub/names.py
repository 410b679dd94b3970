"""What a bundle on the hub is called, and where its copies lie in the cache.

<cache>/bundles/OWNER/NAME/<commit>/            a copy: plain files, every hash of bundle.json checked
<cache>/bundles/OWNER/NAME/revisions/<name>     the commit that a branch or tag was when it was pulled last
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from tudsr_runtime.errors import UsageError, quoted
from tudsr_runtime.files import cache_folder

PREFIX = "hf:"
MAIN = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISIONS = "revisions"
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_-])?"
_NAME = re.compile(
    rf"(?P<owner>{_PART})/(?P<name>{_PART})(?:@(?P<revision>[A-Za-z0-9][\w./-]{{0,200}}))?", re.ASCII
)


@dataclass(frozen=True)
class HubName:
    """A repository, and one state of it: a branch, a tag, or the 40 digits of a commit."""

    owner: str
    name: str
    revision: str = MAIN

    @property
    def repository(self) -> str:
        """OWNER/NAME, as the hub has it."""
        return f"{self.owner}/{self.name}"

    @property
    def folder(self) -> Path:
        """The folder of its copies, which need not exist."""
        return copies_folder() / self.owner / self.name

    @property
    def commit(self) -> str | None:
        """The commit whose copy is in the cache; None if there is none."""
        if COMMIT.fullmatch(self.revision):
            commit = self.revision
        else:
            try:
                commit = self._note.read_text(encoding="utf-8").strip()
            except (OSError, ValueError):
                return None
        return commit if COMMIT.fullmatch(commit) and (self.folder / commit).is_dir() else None

    @property
    def _note(self) -> Path:
        return self.folder / REVISIONS / quote(self.revision, safe="")

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + ("" if self.revision == MAIN else f"@{self.revision}")

    def remember(self, commit: str) -> None:
        """Note which commit the revision is now. Raises OutputError."""
        from tudsr_runtime.atomic import atomic_write
        from tudsr_runtime.files import make_folder

        if not COMMIT.fullmatch(self.revision):
            make_folder(self._note.parent)
            with atomic_write(self._note) as file:
                file.write(commit.encode())

    def revisions_of(self, commit: str) -> list[str]:
        """The branches and tags that were this commit when they were pulled last."""
        try:
            notes = sorted((self.folder / REVISIONS).iterdir())
        except OSError:
            return []
        names = [unquote(path.name) for path in notes]
        return [name for name in names if HubName(self.owner, self.name, name).commit == commit]


def is_hub_name(bundle: object) -> bool:
    """Whether --bundle names one on the hub."""
    return isinstance(bundle, str) and bundle.startswith(PREFIX)


def parse_name(text: str) -> HubName:
    """OWNER/NAME or OWNER/NAME@REVISION, with or without "hf:" in front. Raises UsageError."""
    found = _NAME.fullmatch(text.removeprefix(PREFIX))
    if not found or ".." in text or "--" in found["owner"] + found["name"]:
        raise UsageError(f"{quoted(text)} is no name on the hub", hint="OWNER/NAME or OWNER/NAME@REVISION")
    return HubName(found["owner"], found["name"], found["revision"] or MAIN)


def copies_folder() -> Path:
    """The folder of the cache that holds all copies."""
    return cache_folder() / "bundles"


def copies() -> list[HubName]:
    """Every copy in the cache, by its commit."""
    found = sorted(path for path in copies_folder().glob("*/*/*") if COMMIT.fullmatch(path.name))
    return [HubName(path.parent.parent.name, path.parent.name, path.name) for path in found]
