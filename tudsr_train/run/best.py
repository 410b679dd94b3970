"""The best step of a run by one of its validation figures: a whole copy of its checkpoint, as `best`.

RUN/best/       the checkpoint of that step; `--resume RUN/best` goes on from it
RUN/best.json   which step, by which figure, and how good it was
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from tudsr_runtime.atomic import atomic_dir, atomic_write

RISES = {"psnr": True, "niqe": False, "dists": False}
"""Names that `validation.best` may have, and whether more is better."""
FOLDER, RECORD = "best", "best.json"


@dataclass
class Best:
    """Keeps `RUN/best`; of several stages the last one's figure counts."""

    run: Path
    name: str
    """One of RISES."""

    def improved(self, figures: dict[str, float]) -> bool:
        """Whether `figures` hold a better value than the best so far; false where they hold none."""
        value = self.value(figures)
        if value is None or not math.isfinite(value):
            return False
        before = self.so_far()
        return before is None or (value > before if RISES[self.name] else value < before)

    def value(self, figures: dict[str, float]) -> float | None:
        """The figure of the last stage, such as `NIQE stage 2`; `dists` finds `dists[hed] stage 2` too."""
        found = [value for key, value in figures.items() if key.lower().startswith(self.name)]
        return found[-1] if found else None

    def so_far(self) -> float | None:
        """The best value of earlier steps, by the same figure."""
        path = self.run / RECORD
        record = json.loads(path.read_text()) if path.is_file() else {}
        return float(record["value"]) if record.get("figure") == self.name else None

    def keep(self, checkpoint: Path, step: int, figures: dict[str, float]) -> None:
        """Copy the checkpoint of `step`; the best before it goes only when the copy is whole.

        Raises:
            OutputError: the disk refuses.
        """
        with atomic_dir(self.run / FOLDER, overwrite=True) as folder:
            shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        record = {"step": step, "figure": self.name, "value": self.value(figures), "figures": figures}
        with atomic_write(self.run / RECORD) as file:
            file.write(f"{json.dumps(record, indent=1)}\n".encode())
