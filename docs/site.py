"""The documentation as a site: `python docs/site.py FOLDER` writes FOLDER/site.

It fails where a link leads nowhere. Pages keep the places they have in the repository, so that a link is
right here and there; what they link to, a program or a figure, travels along.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)|\bsrc=\"([^\"]+)\"")
# What no page needs to link to.
STARTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


class DeadLinkError(Exception):
    """A page links to a file that is not there."""


def linked(page: Path) -> list[Path]:
    """The files that a page links to; anchors are left to the strict build."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [one or other for one, other in LINK.findall(text) if "://" not in one + other]
    paths = [(page.parent / target).resolve() for target in targets]
    for target, path in zip(targets, paths, strict=True):
        if not (path.is_file() and path.is_relative_to(ROOT)):
            raise DeadLinkError(
                f"{page.relative_to(ROOT)} links to {target}, a file that does not exist here"
            )
    return paths


def parts() -> list[Path]:
    """Every page, and whatever can be reached from one."""
    found = set()
    waiting = [*(ROOT / name for name in STARTS), *sorted((ROOT / "docs").glob("*.md"))]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += linked(path) if path.suffix == ".md" else []
    return sorted(found)


def assemble(folder: Path) -> None:
    """Lay pages and settings into `folder`; pages of an earlier run are taken away."""
    shutil.rmtree(folder / "pages", ignore_errors=True)
    for path in parts():
        place = folder / "pages" / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    shutil.copyfile(ROOT / "docs" / "mkdocs.yml", folder / "mkdocs.yml")


def build(folder: Path) -> int:
    """Build what was assembled in `folder`; the exit status."""
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    return subprocess.run(command, cwd=folder).returncode


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/site.py FOLDER")
    target = Path(sys.argv[1])
    try:
        assemble(target)
    except DeadLinkError as dead:
        sys.exit(f"error: {dead}")
    sys.exit(build(target))
