"""Pairs that a camera took, such as RealSR's: an HQ picture and an LQ picture of the same scene, aligned."""

from __future__ import annotations

import re
from pathlib import Path

from tudsr_train.data.picture_files import (
    DataError,
    PictureFiles,
    Quarantine,
    Sample,
    UnreadablePicture,
    list_files,
)

HQ_ENDING = re.compile(r"[_-](HR|HQ|GT)\d*$", re.IGNORECASE)
LQ_ENDING = re.compile(r"([_-](LR|LQ)\d*|[_-]?x\d+)$", re.IGNORECASE)

Pair = tuple[Path, Path]


def pair_files(paths: tuple[str, ...], lq_path: str) -> list[Pair]:
    """(HQ, LQ) files, matched by name.

    With `lq_path` the LQ pictures lie below a folder of their own, under the same name or one that ends in
    LR, LR4, x4 and the like; without it they lie beside the HQ ones (`001_HR.png`, `001_LR4.png`).
    Raises DataError where a picture is without its partner.
    """
    high = list_files(paths)
    if lq_path:
        low = list_files((lq_path,))
        names = {_below(file, (lq_path,)).as_posix(): file for file in low}
        names |= {_scene(_below(file, (lq_path,)), LQ_ENDING): file for file in low}
        found = [(file, _partner(_below(file, paths), names)) for file in high]
    else:
        names = {_scene(file, LQ_ENDING): file for file in high if LQ_ENDING.search(file.stem)}
        high = [file for file in high if not LQ_ENDING.search(file.stem)]
        found = [(file, names.get(_scene(file, HQ_ENDING))) for file in high]
    alone = [file for file, partner in found if partner is None]
    if alone or not found:
        first = f", such as {alone[0]}" if alone else ""
        raise DataError(
            f"{len(alone)} of {len(found)} HQ pictures have no LQ picture{first}",
            hint="name both alike, with _HR and _LR4 at the end, or give two folders, data.path and lq_path",
        )
    return [(file, partner) for file, partner in found if partner]


def _partner(file: Path, names: dict[str, Path]) -> Path | None:
    return names.get(file.as_posix()) or names.get(_scene(file, HQ_ENDING))


def _below(file: Path, folders: tuple[str, ...]) -> Path:
    for folder in (Path(f).expanduser() for f in folders):
        if file.is_relative_to(folder):
            return file.relative_to(folder)
    return Path(file.name)


def _scene(file: Path, ending: re.Pattern[str]) -> str:
    """What the file shows: its path without suffix and without the ending that says HQ or LQ."""
    return (file.parent / ending.sub("", file.stem)).as_posix()


class PairedFiles(PictureFiles):
    """HQ and LQ pictures of files; the HQ one is a whole number of times as large, the same for both axes."""

    def __init__(self, pairs: list[Pair], seed: int, quarantine: Quarantine, keep_decoded: int = 0) -> None:
        super().__init__([high for high, _ in pairs], seed, quarantine, keep_decoded)
        self.low = [low for _, low in pairs]

    def read(self, epoch: int, index: int, chosen: int) -> Sample:
        high, low = self.decoded(self.files[chosen]), self.decoded(self.low[chosen])
        factor = high.shape[0] // low.shape[0]
        if factor < 1 or (low.shape[0] * factor, low.shape[1] * factor) != high.shape[:2]:
            sizes = [f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in (high, low)]
            reason = f"{sizes[0]} px is no multiple of {sizes[1]} px of {self.low[chosen]}"
            raise UnreadablePicture(str(self.files[chosen]), reason)
        return Sample(epoch, index, high, low)
