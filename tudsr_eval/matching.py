"""Which reference and which input belong to a prediction: by name, and what belongs to nothing is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tudsr_runtime.batch.inputs import NAMED_LIKE_A_RESULT
from tudsr_runtime.errors import InputError, UsageError
from tudsr_runtime.pictures.formats import FORMAT_OF_SUFFIX

SHOWN = 3
"""Names that a note lists before it only counts."""


@dataclass(frozen=True)
class Case:
    """One prediction of one method, and what it is measured against."""

    method: str
    name: str
    """The subject: the prediction's stem, or what it matched by; the same for every method."""
    prediction: Path
    reference: Path | None = None
    source: Path | None = None
    """The small picture that was enlarged."""


@dataclass
class Matched:
    """Cases in the order of methods and names, and what has to be said of the rest."""

    cases: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def match(predictions: Sequence[Path], reference: Path | None, source: Path | None) -> Matched:
    """Find every prediction's reference and input.

    Each of `predictions` is a method: a folder of pictures or a single one. `NAME_x4.png`,
    `NAME_1920x1080.png` and `NAME.jpg` all find `NAME.png`. A single prediction and a single reference belong
    together whatever their names are.

    Raises:
        InputError: a path does not exist, or a folder holds no picture.
        UsageError: two methods of one name, a name that matches twice, or nothing that matches at all.
    """
    result = Matched()
    methods = _named(predictions)
    references, sources = _Shelf("reference", reference), _Shelf("input", source)
    for method, path in methods.items():
        found = pictures_at(path)
        for picture in found:
            alone = len(found) == 1
            of_reference, of_source = (shelf.find(picture, alone) for shelf in (references, sources))
            name = (of_reference or of_source or _subject(picture)).stem
            result.cases.append(Case(method, name, picture, of_reference, of_source))
    for shelf in (references, sources):
        result.notes += shelf.report(result.cases)
    _refuse_twins(result.cases)
    return result


def pictures_at(path: Path) -> list[Path]:
    """The pictures of a folder, sorted, or the one that `path` is. InputError where there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    found = sorted(
        p for p in path.iterdir() if p.suffix.lower() in FORMAT_OF_SUFFIX and not p.name.startswith(".")
    )
    if not found:
        raise InputError(f"{path}: no picture in this folder")
    return found


class _Shelf:
    """The pictures of one side, by stem."""

    def __init__(self, kind: str, path: Path | None) -> None:
        self.kind, self.path = kind, path
        self.pictures = pictures_at(path) if path else []
        self.by_stem: dict[str, Path] = {}
        for picture in self.pictures:
            if picture.stem in self.by_stem:
                raise UsageError(f"{self.by_stem[picture.stem]} and {picture} are both {picture.stem}")
            self.by_stem[picture.stem] = picture

    def find(self, picture: Path, alone: bool) -> Path | None:
        if alone and self.path in self.pictures:
            return self.path
        return self.by_stem.get(picture.stem) or self.by_stem.get(_subject(picture).stem)

    def report(self, cases: Sequence[Case]) -> list[str]:
        """Notes on what did not match; UsageError where nothing did."""
        if not self.path:
            return []
        used = [case.reference if self.kind == "reference" else case.source for case in cases]
        without = [case.prediction.name for case, path in zip(cases, used, strict=True) if path is None]
        if len(without) == len(cases):
            raise UsageError(
                f"no prediction has {_article(self.kind)} in {self.path}: {first_few(without)} "
                f"beside {first_few([p.name for p in self.pictures])}",
                hint="files are matched by name: NAME_x4.png finds NAME.png",
            )
        unused = [p.name for p in self.pictures if p not in used]
        notes = [f"without {_article(self.kind)}: {first_few(without)}"] if without else []
        return notes + ([f"{self.path}: matched by no prediction: {first_few(unused)}"] if unused else [])


def _named(predictions: Sequence[Path]) -> dict[str, Path]:
    """Methods by the name of their folder or file."""
    methods: dict[str, Path] = {}
    for path in predictions:
        name = path.resolve().name if path.is_dir() else path.stem
        if name in methods:
            raise UsageError(f"{methods[name]} and {path} would both be called {name}", hint="rename one")
        methods[name] = path
    return methods


def _subject(picture: Path) -> Path:
    """The path with the name of the subject: `NAME.png` of `NAME_x4.png`."""
    found = NAMED_LIKE_A_RESULT.fullmatch(picture.stem)
    return picture.with_stem(found["stem"]) if found else picture


def _refuse_twins(cases: Sequence[Case]) -> None:
    first: dict[tuple[str, str], Path] = {}
    for case in cases:
        other = first.setdefault((case.method, case.name), case.prediction)
        if other != case.prediction:
            raise UsageError(f"{other} and {case.prediction} are both predictions of {case.name}")


def _article(kind: str) -> str:
    return f"an {kind}" if kind == "input" else f"a {kind}"


def first_few(names: Sequence[str]) -> str:
    """Names with commas between: the first few, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
