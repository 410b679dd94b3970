"""Runs pyiqa in an environment of the user's own: a program by itself, which imports nothing of tudsr.

    PYTHON pyiqa_worker.py REQUEST.json RESULTS.jsonl

pyiqa's licence (PolyForm Noncommercial) keeps it out of tudsr: this file is handed to the Python that has it.
A line is appended for each score, so that a run that was stopped goes on where it was. Exit codes: 0 done;
3 pyiqa is absent or of another version, 4 a metric cannot be made, each with one line on stderr.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors", ".mat", ".npz", ".pkl", ".bin")


def fail(code: int, text: str) -> NoReturn:
    sys.stderr.write(" ".join(text.split()) + "\n")
    raise SystemExit(code)


def load_pyiqa(wanted: str) -> Any:
    try:
        pyiqa = importlib.import_module("pyiqa")
    except ImportError as error:
        fail(3, f"pyiqa cannot be imported by {sys.executable}: {error}")
    if pyiqa.__version__ != wanted:
        fail(3, f"{sys.executable} has pyiqa {pyiqa.__version__}; the scores are defined by {wanted}")
    return pyiqa


def seed_all(seed: int) -> None:
    random.seed(seed)
    for name, function in (("numpy", "random.seed"), ("torch", "manual_seed")):
        try:
            found: Any = importlib.import_module(name)
        except ImportError:
            continue
        for part in function.split("."):
            found = getattr(found, part)
        found(seed)


def score(metric: Callable[..., Any], seed: int, repeats: int, *paths: str) -> tuple[float, float]:
    """Mean over seeds, and the spread; MANIQA draws crops."""
    values = []
    for number in range(repeats):
        seed_all(seed + number)
        values.append(float(metric(*paths)))
    return statistics.fmean(values), max(values) - min(values)


def linked(folder: Path, paths: Iterable[str]) -> str:
    """A folder of links: pyiqa's FID takes folders."""
    folder.mkdir()
    for number, path in enumerate(paths):
        (folder / f"{number:05d}{Path(path).suffix.lower()}").symlink_to(Path(path).resolve())
    return str(folder)


def weights(roots: Iterable[str]) -> dict[str, str]:
    """SHA-256 of every file of weights below the caches."""
    found = {}
    for root in map(Path, roots):
        for path in sorted(root.rglob("*")) if root.is_dir() else ():
            if path.suffix in WEIGHT_SUFFIXES and path.is_file():
                with path.open("rb") as file:
                    digest = hashlib.sha256()
                    while block := file.read(1 << 20):
                        digest.update(block)
                found[path.relative_to(root).as_posix()] = digest.hexdigest()
    return found


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    pyiqa = load_pyiqa(request["pyiqa"])
    with open(sys.argv[2], "a", encoding="utf-8") as results:

        def say(**line: object) -> None:
            results.write(json.dumps(line) + "\n")
            results.flush()
            os.fsync(results.fileno())

        for job in request["jobs"]:
            seed_all(request["seed"])
            try:
                metric = pyiqa.create_metric(job["id"], device=request["device"])
            except Exception as error:
                fail(4, f"pyiqa cannot make {job['id']}: {type(error).__name__}: {error}")
            for item in job["items"]:
                started = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    paths = item["paths"]
                    if job["of_sets"]:
                        paths = [linked(Path(folder, str(i)), of) for i, of in enumerate(paths)]
                    value, spread = score(metric, request["seed"], job["repeats"], *paths)
                seconds = round(time.perf_counter() - started, 3)
                say(id=job["id"], key=item["key"], value=value, spread=spread, seconds=seconds)
        say(facts={"pyiqa": pyiqa.__version__, "python": sys.version.split()[0], "seed": request["seed"],
                   "device": request["device"], "weights": weights(request["weights"])})  # fmt: skip


if __name__ == "__main__":
    main()
