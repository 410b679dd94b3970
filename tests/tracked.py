"""The files of the repository itself, without what runs of the commands have left beside them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from pathspec import GitIgnoreSpec

ROOT = Path(__file__).parent.parent


def files(*folders: str) -> list[Path]:
    """The tracked files, in these folders; in a copy without git those that git would not ignore."""
    found = [path for path in _by_git() or _by_patterns() if path.is_file()]
    return sorted(path for path in found if not folders or path.relative_to(ROOT).parts[0] in folders)


def copy(target: Path, *folders: str) -> Path:
    """Copy them to the same places below `target`."""
    for path in files(*folders):
        place = target / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return target


def ignored() -> GitIgnoreSpec:
    """What .gitignore says, and what no archive holds."""
    file = ROOT / ".gitignore"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return GitIgnoreSpec.from_lines([*lines, ".git"])


def _by_git() -> list[Path]:
    """Nothing where there is no git, or where it does not know this folder."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [ROOT / name for name in listed.decode("utf-8", "surrogateescape").split("\0") if name]


def _by_patterns() -> list[Path]:
    return [ROOT / name for name in ignored().match_tree_files(ROOT, negate=True)]
