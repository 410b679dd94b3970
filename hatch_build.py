"""Build hook: what makes the package `tudsr` of the command, which stands at the root of the repository."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

EDITABLE = """\
import sys

from cli import main as main

if __name__ == "__main__":
    sys.exit(main())
"""
MAIN = """\
\"\"\"`python -m tudsr` is the command.\"\"\"

import sys

from tudsr.cli import main

sys.exit(main())
"""


class Command(BuildHookInterface):  # type: ignore[type-arg]
    """Give `tudsr` a `__main__`, and in an editable install a `tudsr.cli` that is the checkout's own cli.py.

    A copy of that would go stale with the first edit. The checkout is on `sys.path` there, so that `cli` can
    be imported.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        files = {"__main__.py": MAIN}
        if version == "editable":
            files["cli.py"] = EDITABLE
        included = build_data["force_include_editable" if version == "editable" else "force_include"]
        for name, content in files.items():
            made = Path(self.directory) / f"tudsr_{name}"
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(content, encoding="utf-8")
            included[str(made)] = f"tudsr/{name}"
