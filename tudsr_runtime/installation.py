"""How to install what an extra of the package names, by a command that works wherever tudsr came from."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path


def install_hint(extra: str) -> str:
    """The pip command for an extra, such as "openvino": `pip install "openvino>=2025.0"`.

    The package is on no index, so that `tudsr[openvino]` works nowhere: what the extra stands for is named
    instead, as the installed package lists it. A source tree that is not installed is to be installed itself.
    """
    try:
        listed = importlib.metadata.requires("tudsr") or []
    except importlib.metadata.PackageNotFoundError:
        return f'pip install "{Path(__file__).parent.parent}[{extra}]"'
    wanted = [requirement for requirement in map(str, listed) if _extra_of(requirement) == extra]
    return "pip install " + " ".join(f'"{requirement.partition(";")[0].strip()}"' for requirement in wanted)


def _extra_of(requirement: str) -> str | None:
    found = re.search(r"""extra == ['"]([\w.-]+)['"]""", requirement)
    return found[1] if found else None
