"""Where tudsr keeps what it can make again: engines, timing caches."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The folder of `TUDSR_CACHE`, else `tudsr` in the user's cache folder. It need not exist yet."""
    named = os.environ.get("TUDSR_CACHE")
    return Path(named).absolute() if named else _user_cache() / "tudsr"


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    # The XDG specification ignores a relative path.
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"
