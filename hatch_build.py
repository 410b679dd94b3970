"""Build hook: an editable install runs the checkout's own cli.py, not the copy that a wheel carries."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EditableCommand(BuildHookInterface):  # type: ignore[type-arg]
    """In an editable install, make `tudsr.cli` one line that imports the checkout's cli.py.

    A copy would go stale with the first edit. The checkout is on `sys.path` there, so `cli` can be imported.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            return
        shim = Path(self.directory) / "editable_cli.py"
        shim.write_text("from cli import main as main\n", encoding="utf-8")
        build_data["force_include_editable"][str(shim)] = "tudsr/cli.py"
