"""`tudsr eval`: what its options mean, and which parts run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from tudsr_eval.ablation import enlarge_by_plans
from tudsr_eval.comparison import Comparison
from tudsr_eval.learned import LEARNED, OF_SETS, Learned, Weights, load_learned
from tudsr_eval.matching import first_few, match
from tudsr_eval.options import AblationOptions, EvalOptions, PaperOptions
from tudsr_eval.page import write_page
from tudsr_eval.paper import PAPER, Environment, paper_tables, run_paper
from tudsr_eval.run import Scored, score_all
from tudsr_eval.scores import ALWAYS, GROUPS, Metric, Tiling
from tudsr_eval.self_check import self_check
from tudsr_eval.table import markdown
from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.errors import BatchError, UsageError
from tudsr_runtime.files import make_folder
from tudsr_runtime.terminal import Terminal


def comparison(path: Path) -> Comparison:
    """The receiver of the results of `tudsr upscale --compare`. Raises as `Comparison`."""
    return Comparison(path)


def evaluate(predictions: Sequence[Path], options: EvalOptions, paper_table: str | None = None) -> None:
    """Score, print, write; or check the evaluator itself.

    Args:
        paper_table: 1, 2, 4 or 5, for the paper's metrics; None chooses 1 or 2 by the scale.

    Raises:
        DeviceError: pyiqa cannot be run.
        UsageError: an unknown metric, one whose weights are not named, or names that do not match.
        BundleError: weights are absent or not what they should be.
        InputError: a path that is not there, or a folder without pictures.
        BatchError: some pictures could not be measured; the others are reported.
        OutputError: the results cannot be written.
    """
    terminal = Terminal(options.quiet)
    if options.self_check is not None:
        terminal.result(self_check(options.self_check, options.jobs, terminal.note))
        return
    if not predictions:
        raise UsageError("nothing to measure", hint="tudsr eval FOLDER --reference FOLDER; --help says more")
    wanted = wanted_metrics(options.metrics)
    names = [name for name in wanted if name in ALWAYS]
    learned = load_learned(wanted, _weights(options)) if set(wanted) & {*LEARNED} else None
    metrics = ALWAYS | (learned.metrics if learned else {})
    matched = match(predictions, options.reference, options.source)
    for note in matched.notes:
        terminal.note(note)
    _say_what_is_left_out(terminal, names, options)
    scored = []
    extra = learned.of_picture if learned else None
    for one in score_all(matched.cases, names, Tiling(options.tile), extra, options.jobs):
        scored.append(one)
        _tell(terminal, one, options)
    _tell_notes(terminal, scored)
    sets = _of_sets(learned, scored)
    tables = ""
    if "paper" in wanted:
        tables = _add_paper(scored, sets, options, paper_table, terminal)
        metrics = metrics | {f"paper {name}": replace(m, name=f"paper {name}") for name, m in PAPER.items()}
    report = markdown(scored, metrics, sets) + tables
    if not options.as_json:
        terminal.result(report.rstrip())
    if options.output is not None:
        write_results(options.output, scored, report, metrics, options.page_pictures)
        terminal.note(f"{options.output}: scores.jsonl, scores.md, index.html")
    failed = [one for one in scored if one.error]
    if failed:
        raise BatchError(f"{len(failed)} of {len(scored)} pictures could not be measured")


def ablation(bundle: str, folder: Path, options: AblationOptions) -> None:
    """The paper's Table 4 (x4) or 5 (x8) for a bundle: results and scores in `options.output`.

    Raises:
        TudsrError: as `enlarge_by_plans` and `evaluate`.
    """
    folders = enlarge_by_plans(bundle, folder, options, Terminal().note)
    shared = {field.name: getattr(options, field.name) for field in fields(PaperOptions)}
    scoring = EvalOptions(
        **shared,
        reference=options.reference,
        source=folder,
        metrics=options.metrics,
        output=options.output,
    )
    evaluate(folders, scoring, paper_table="4" if options.scale == 4 else "5")


def wanted_metrics(text: str) -> list[str]:
    """Names of metrics from a list with commas, groups taken apart. UsageError for one that is not known."""
    wanted: dict[str, None] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        names = GROUPS.get(word) or ((word,) if word in {*ALWAYS, *LEARNED, "paper"} else ())
        if not names:
            known = ", ".join(dict.fromkeys([*GROUPS, "paper", *ALWAYS, *LEARNED]))
            raise UsageError(f"--metrics {word}: no such metric", hint=known)
        wanted |= dict.fromkeys(names)
    if not wanted:
        raise UsageError("--metrics names no metric")
    return list(wanted)


def write_results(
    folder: Path, scored: Sequence[Scored], report: str, metrics: dict[str, Metric], page_pictures: int
) -> None:
    """scores.jsonl, scores.md and index.html in `folder`, which is made. OutputError where that fails."""
    make_folder(folder)
    lines = "".join(json.dumps(one.record()) + "\n" for one in scored)
    for name, text in (("scores.jsonl", lines), ("scores.md", report)):
        with atomic_write(folder / name) as file:
            file.write(text.encode("utf-8", "surrogateescape"))
    write_page(folder / "index.html", scored, metrics, page_pictures)


def _add_paper(
    scored: Sequence[Scored],
    sets: dict[str, dict[str, float]],
    options: EvalOptions,
    number: str | None,
    terminal: Terminal,
) -> str:
    """Add pyiqa's scores to the others, under their own names; return the paper's table of them."""
    if options.output is None:
        raise UsageError("--metrics paper keeps its scores, to go on from", hint="-o FOLDER")
    cases = [one.case for one in scored if not one.error]
    found = run_paper(cases, options.output, _environment(options), terminal.note)
    for one in scored:
        of = found.pictures.get((one.case.method, one.case.name), {})
        one.scores |= {f"paper {name}": value for name, value in of.items()}
    for method, values in found.sets.items():
        sets.setdefault(method, {}).update({f"paper {name}": value for name, value in values.items()})
    scale = next((one.scale for one in scored if one.scale), None)
    number = number or ("2" if scale is not None and scale > 6 else "1")
    facts = json.dumps(found.facts, indent=1)
    return f"\n{paper_tables(found, cases, number, options.paper_dataset)}\n```json\n{facts}\n```\n"


def _weights(options: EvalOptions) -> Weights:
    return Weights(options.vgg16, options.dists, options.alexnet, options.lpips, options.inception)


def _environment(options: EvalOptions) -> Environment:
    return Environment(options.paper_python, options.paper_device, options.seed, options.weights)


def _of_sets(learned: Learned | None, scored: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """FID and KID of the pictures that could be measured; none where they were not asked for."""
    measured = [one.case for one in scored if not one.error and one.case.reference]
    if learned is None or not {*OF_SETS} & {*learned.metrics}:
        return {}
    predictions: dict[str, list[Path]] = {}
    for case in measured:
        predictions.setdefault(case.method, []).append(case.prediction)
    references = list(dict.fromkeys(case.reference for case in measured if case.reference))
    if min(map(len, predictions.values()), default=0) < 2 or len(references) < 2:
        raise UsageError("FID and KID compare sets: two pictures with references are the least")
    return learned.of_sets(predictions, references)


def _tell(terminal: Terminal, one: Scored, options: EvalOptions) -> None:
    if one.error:
        terminal.error(one.error)
    if options.as_json:
        terminal.json(one.record())


def _tell_notes(terminal: Terminal, scored: Sequence[Scored]) -> None:
    """Each note once, with the pictures that it is about."""
    of_note: dict[str, list[str]] = {}
    for one in scored:
        for note in one.notes:
            of_note.setdefault(note, []).append(one.case.prediction.name)
    for note, names in of_note.items():
        terminal.note(f"{note} ({first_few(names)})")


def _say_what_is_left_out(terminal: Terminal, names: Sequence[str], options: EvalOptions) -> None:
    absent = [] if options.reference else [n for n in names if ALWAYS[n].reference]
    if absent:
        terminal.note(f"without --reference there is no {', '.join(absent)}")
    absent = [] if options.source else [n for n in names if ALWAYS[n].source and n not in absent]
    if absent:
        terminal.note(f"without --input there is no {', '.join(absent)}")
