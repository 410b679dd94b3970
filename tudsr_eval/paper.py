"""The metrics of the paper, by pyiqa in an environment that the user made, never in ours.

pyiqa is under a non-commercial licence and brings much along, so that it is no dependency: `pyiqa_worker.py`
is run by the user's Python, told by a request file what to score, and writes a line for each score. What is
there already, of the same pictures and the same seed, is not computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tudsr_eval.matching import Case
from tudsr_eval.scores import Metric
from tudsr_eval.table import table
from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.errors import DeviceError, UsageError
from tudsr_runtime.files import file_sha256, make_folder

VERSION = "0.1.16"
WORKER = Path(__file__).with_name("pyiqa_worker.py")
PUBLISHED = Path(__file__).with_name("published.json")
RESULTS = "paper.jsonl"
INSTALL = f"python3 -m venv iqa && iqa/bin/pip install pyiqa=={VERSION}, then --paper-python iqa/bin/python"
REPEATS = {"maniqa-pipal": 3}
"""How many seeds the metrics that draw crops are averaged over."""
PAPER = {
    metric.name: metric
    for metric in (
        Metric("lpips", "LPIPS", "lower", 4, reference=True),
        Metric("fid", "FID", "lower", 2, reference=True),
        Metric("clipiqa", "CLIPIQA", "higher", 4),
        Metric("clipiqa+", "CLIPIQA+", "higher", 4),
        Metric("nima", "NIMA", "higher", 4),
        Metric("niqe", "NIQE", "lower", 4),
        Metric("liqe", "LIQE", "higher", 4),
        Metric("musiq", "MUSIQ", "higher", 4),
        Metric("maniqa", "MANIQA", "higher", 4),
    )
}
"""The metrics of the paper's Table 1, in its order."""
IDS = {"maniqa": "maniqa-pipal"}
"""pyiqa's names where they are others: its plain `maniqa` is another training, on another scale."""


@dataclass(frozen=True)
class Environment:
    """Where and how pyiqa runs."""

    python: Path | None = None
    device: str = "cpu"
    seed: int = 0
    weights: Path | None = None
    """Folder of downloaded weights; None leaves it to torch and the hub."""


@dataclass
class PaperScores:
    """What pyiqa found: by method and subject, and FID by method."""

    pictures: dict[tuple[str, str], dict[str, float]]
    sets: dict[str, dict[str, float]]
    facts: dict[str, Any]


def run_paper(
    cases: Sequence[Case], folder: Path, environment: Environment, note: Callable[[str], object]
) -> PaperScores:
    """Score `cases` by all of PAPER that their references allow; results are kept in `folder`.

    Raises:
        UsageError: no Python was named that has pyiqa.
        DeviceError: it has none, another version, or a metric cannot be made (its weights, for instance).
        OutputError: `folder` cannot be written.
    """
    if environment.python is None:
        raise UsageError(f"the paper's metrics need a Python that has pyiqa {VERSION}", hint=INSTALL)
    results = folder / RESULTS
    jobs = _jobs(cases, environment)
    done = _known(results)
    missing = [
        {**job, "items": [i for i in job["items"] if (job["id"], i["key"]) not in done]} for job in jobs
    ]
    missing = [job for job in missing if job["items"]]
    asked = sum(len(job["items"]) for job in jobs)
    left = sum(len(job["items"]) for job in missing)
    note(f"pyiqa {VERSION}: {left} scores to compute, {asked - left} are in {results}")
    if missing:
        _run_worker(folder, missing, environment)
        done = _known(results)
    return _collected(jobs, done, _facts(results))


def paper_tables(scores: PaperScores, cases: Sequence[Case], number: str, dataset: str | None) -> str:
    """The means in the layout of one of the paper's tables: 1 has a column a method, 2, 4 and 5 a row.

    With `dataset`, the published figures stand beside them. UsageError for one that the paper does not have.
    """
    published = published_of(number, dataset) if dataset else {}
    ours = _means(scores, cases)
    rows = {**published, **{f"**{method}**": of for method, of in ours.items()}}
    names = [name for name in PAPER if any(name in of for of in rows.values())]
    title = f"The paper's Table {number}{f', {dataset}' if dataset else ''}; yours in bold:"
    return f"{title}\n\n{laid_out(rows, names, across=number == '1')}\n"


def laid_out(rows: Mapping[str, Mapping[str, float]], names: Sequence[str], across: bool) -> str:
    """Methods as columns where `across`, else as rows."""
    cells = {m: [f"{of[n]:.{PAPER[n].digits}f}" if n in of else "-" for n in names] for m, of in rows.items()}
    headings = [PAPER[name].heading for name in names]
    if not across:
        return table(["method", *headings], [[method, *of] for method, of in cells.items()])
    lines = [[heading, *(of[i] for of in cells.values())] for i, heading in enumerate(headings)]
    return table(["metric", *cells], lines)


def published_of(number: str, dataset: str) -> dict[str, dict[str, float]]:
    """The paper's figures of one data set in Table 1, 2, 4 or 5, by method."""
    found: dict[str, dict[str, dict[str, float]]] = json.loads(PUBLISHED.read_text("utf-8"))[number]
    if dataset not in found:
        raise UsageError(f"the paper's Table {number} has no {dataset}", hint=", ".join(found))
    return found[dataset]


def _means(scores: PaperScores, cases: Iterable[Case]) -> dict[str, dict[str, float]]:
    means: dict[str, dict[str, float]] = {}
    for method in dict.fromkeys(case.method for case in cases):
        found = [of for (m, _), of in scores.pictures.items() if m == method]
        names = {name for of in found for name in of}
        of_method = {n: [of[n] for of in found if n in of] for n in names}
        means[method] = {n: sum(v) / len(v) for n, v in of_method.items()} | scores.sets.get(method, {})
    return means


def _jobs(cases: Sequence[Case], environment: Environment) -> list[dict[str, Any]]:
    """What the worker is asked: for each metric its pictures, or pairs, or sets."""
    hashes = {p: file_sha256(p) for c in cases for p in (c.prediction, c.reference) if p}
    jobs = []
    for name, metric in PAPER.items():
        items = _sets(cases, hashes) if name == "fid" else _singles(cases, hashes, metric.reference)
        number = IDS.get(name, name)
        for item in items:
            item["key"] = f"{item['key']} seed {environment.seed}"
        repeats = REPEATS.get(number, 1)
        jobs.append(
            {"name": name, "id": number, "of_sets": name == "fid", "repeats": repeats, "items": items}
        )
    return [job for job in jobs if job["items"]]


def _singles(cases: Sequence[Case], hashes: Mapping[Path, str], reference: bool) -> list[dict[str, Any]]:
    items = []
    for case in cases:
        paths = [p for p in (case.prediction, case.reference if reference else None) if p]
        if len(paths) == 1 + reference:
            files, key = [str(p.resolve()) for p in paths], " ".join(hashes[p] for p in paths)
            items.append({"case": [case.method, case.name], "paths": files, "key": key})
    return items


def _sets(cases: Sequence[Case], hashes: Mapping[Path, str]) -> list[dict[str, Any]]:
    items = []
    for method in dict.fromkeys(case.method for case in cases):
        pairs = [(c.prediction, c.reference) for c in cases if c.method == method and c.reference]
        if len(pairs) > 1:
            sides = [[str(p.resolve()) for p in side] for side in zip(*pairs, strict=True)]
            text = " ".join(f"{hashes[x]}{hashes[y]}" for x, y in pairs)
            key = hashlib.sha256(text.encode()).hexdigest()
            items.append({"case": [method, None], "paths": sides, "key": key})
    return items


def _run_worker(folder: Path, jobs: list[dict[str, Any]], environment: Environment) -> None:
    variables, caches = dict(os.environ), _caches()
    if environment.weights is not None:
        torch_home, hub = environment.weights / "torch", environment.weights / "huggingface"
        variables |= {"TORCH_HOME": str(torch_home.resolve()), "HF_HOME": str(hub.resolve())}
        caches = [torch_home, hub]
    request = {
        "pyiqa": VERSION, "seed": environment.seed, "device": environment.device, "jobs": jobs,
        "weights": [str(path.resolve()) for path in caches],
    }  # fmt: skip
    make_folder(folder)
    with atomic_write(folder / "paper-request.json") as file:
        file.write(json.dumps(request, indent=1).encode())
    command = [
        str(environment.python),
        str(WORKER),
        str(folder / "paper-request.json"),
        str(folder / RESULTS),
    ]
    try:
        done = subprocess.run(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True, errors="replace", check=False)  # fmt: skip
    except OSError as error:
        raise DeviceError(f"{environment.python} cannot be run: {error.strerror or error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        hint = {3: INSTALL, 4: "where weights are to be had: HF_ENDPOINT, or --weights DIR"}
        raise DeviceError(
            f"pyiqa's process ended with {done.returncode}: {last}", hint=hint.get(done.returncode)
        )


def _caches() -> list[Path]:
    """Where pyiqa leaves weights by itself."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    torch_home = Path(os.environ.get("TORCH_HOME", home / "torch"))
    hub = Path(os.environ.get("HF_HOME", home / "huggingface")) / "hub"
    return [torch_home / "hub" / "pyiqa", hub / "models--chaofengc--IQA-PyTorch-Weights"]


def _known(path: Path) -> dict[tuple[str, str], float]:
    return {(line["id"], line["key"]): line["value"] for line in _lines(path) if "key" in line}


def _facts(path: Path) -> dict[str, Any]:
    found = [line["facts"] for line in _lines(path) if "facts" in line]
    return found[-1] if found else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """What a run has left; of one that was killed the last line may be cut."""
    if not path.is_file():
        return []
    text = path.read_text("utf-8")
    whole = [line for line in text.splitlines(keepends=True) if line.endswith("}\n")]
    if "".join(whole) != text:
        with atomic_write(path) as file:
            file.write("".join(whole).encode())
    return [json.loads(line) for line in whole]


def _collected(
    jobs: list[dict[str, Any]], done: Mapping[tuple[str, str], float], facts: dict[str, Any]
) -> PaperScores:
    found = PaperScores({}, {}, facts)
    for job in jobs:
        for item in job["items"]:
            value = done.get((job["id"], item["key"]))
            if value is None:
                continue
            method, subject = item["case"]
            if job["of_sets"]:
                found.sets.setdefault(method, {})[job["name"]] = value
            else:
                found.pictures.setdefault((method, subject), {})[job["name"]] = value
    return found
