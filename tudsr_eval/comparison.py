"""`tudsr upscale --compare`: what was enlarged beside its bicubic enlargement, as a page or as one picture.

The page is that of `tudsr eval`; the picture has a row for each input: the same detail of the input, of its
bicubic enlargement and of the result, all at the size that they have in the result.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from tudsr_eval.matching import Case
from tudsr_eval.page import as_image, spread, write_page
from tudsr_eval.run import Scored
from tudsr_eval.scores import ALWAYS, Subject, load, measure
from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.errors import InputError, OutputError, UsageError
from tudsr_runtime.metrics.pixels import Array, studio_luma

PAGES = (".html", ".htm")
MADE_BY = "tudsr upscale --compare"
"""What the file says of itself, so that the next run knows it as one of its own."""
ON_A_PAGE, IN_A_PICTURE = 60, 12
"""The most inputs that are shown; where there are more, those shown are evenly spread."""
DETAIL = 512
"""Side of the detail in a picture, px of the result."""
GAP, LINE, TEXT = 12, 30, 18
"""Between the panels, height of a line of text and of its letters, px."""


@dataclass
class Comparison:
    """Collects the results of a run and writes them beside their inputs in the end.

    Raises:
        UsageError: the file's name says neither page nor picture.
        OutputError: there is a file of that name which is no comparison, or which cannot be read.
    """

    path: Path
    pairs: list[tuple[Path, Path]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.suffix.lower() not in (*PAGES, ".png"):
            raise UsageError(f"--compare {self.path} is neither a page nor a picture: .html or .png")
        if not self.path.parent.is_dir():
            raise OutputError(f"cannot write {self.path}: there is no folder {self.path.parent}")
        if self.path.exists() and not _is_ours(self.path):
            raise OutputError(f"{self.path} exists and is no comparison", hint="another name for --compare")

    def add(self, source: Path, result: Path) -> None:
        """Remember a picture and its result, both files."""
        self.pairs.append((source, result))

    def write(self, note: Callable[[str], None]) -> None:
        """Write the file, if there is anything to show. `note` is told what is not in it.

        Raises:
            OutputError: it cannot be written.
        """
        page = self.path.suffix.lower() in PAGES
        limit = ON_A_PAGE if page else IN_A_PICTURE
        pairs = spread(self.pairs, limit)
        if not pairs:
            note(f"note: nothing to compare, {self.path} is not written")
            return
        if len(pairs) < len(self.pairs):
            note(f"note: {self.path} shows {len(pairs)} of {len(self.pairs)} pictures")
        (self._page if page else self._picture)(pairs)
        note(f"comparison: {self.path}")

    def _page(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        with TemporaryDirectory(prefix="tudsr-") as folder:
            scored = [one for n, pair in enumerate(pairs) for one in _cases(Path(folder, f"{n}.png"), *pair)]
            write_page(self.path, scored, {"consistency": ALWAYS["consistency"]}, len(pairs), MADE_BY)

    def _picture(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        sheet = stacked([row(*pair) for pair in pairs])
        said = PngImagePlugin.PngInfo()
        said.add_text("Software", MADE_BY)
        with atomic_write(self.path) as file:
            sheet.save(file, "PNG", pnginfo=said)


def _is_ours(path: Path) -> bool:
    """Whether this module wrote the file."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise OutputError(f"cannot replace {path}: {error.strerror or error}") from error
    page = head.startswith(b"<!doctype html>") and f"<title>{html.escape(MADE_BY)}<".encode() in head
    return page or (head.startswith(b"\x89PNG") and b"tEXtSoftware\0" + MADE_BY.encode() in head)


def _cases(place: Path, source: Path, result: Path) -> list[Scored]:
    """Score the bicubic enlargement, which is written to `place`, and the result by what they kept."""
    small, large = load(source), load(result)
    plain = bicubic(small, large.shape[1], large.shape[0])
    plain.save(place, compress_level=1)
    name = f"{source.name}, {large.shape[1]} x {large.shape[0]}"
    return [
        _scored(Case("bicubic", name, place, source=source), np.asarray(plain), small),
        _scored(Case("tudsr", name, result, source=source), large, small),
    ]


def _scored(case: Case, picture: Array, small: Array) -> Scored:
    scored = Scored(case, (picture.shape[1], picture.shape[0]))
    try:
        scored.scores, scored.notes = measure(Subject(picture, None, small), ["consistency"])
    except InputError as error:
        # A result of another shape than its input has none, and is worth looking at all the same.
        scored.notes.append(str(error))
    return scored


def bicubic(small: Array, width: int, height: int) -> Image.Image:
    """The input enlarged as other programs do by default, 8 bits."""
    return as_image(small).resize((width, height), Image.Resampling.BICUBIC)


def row(source: Path, result: Path) -> Image.Image:
    """One line of text, and below it the detail of input, bicubic and result."""
    small, large = load(source), load(result)
    height, width = large.shape[:2]
    left, top, right, bottom = box = detail(large)
    across, down = as_image(small).width / width, as_image(small).height / height
    part = (left * across, top * down, right * across, bottom * down)
    size = (right - left, bottom - top)
    image = as_image(small)
    panels = [
        image.resize(size, Image.Resampling.NEAREST, part),
        image.resize(size, Image.Resampling.BICUBIC, part),
        as_image(large).crop(box),
    ]
    scale = f"x{width / image.width:.4g}"
    titles = [f"{source.name}, {image.width} x {image.height}", f"{scale} bicubic", f"{scale} tudsr"]
    return _side_by_side(panels, titles)


def detail(large: Array) -> tuple[int, int, int, int]:
    """The part of at most `DETAIL` px a side with the greatest differences between neighbours: left, top,
    right, bottom."""
    height, width = large.shape[:2]
    across, down = min(width, DETAIL), min(height, DETAIL)
    luma = studio_luma(_colour(large))
    busy = np.zeros((height + 1, width + 1))
    change = np.abs(np.diff(luma, axis=0, append=luma[-1:])) + np.abs(
        np.diff(luma, axis=1, append=luma[:, -1:])
    )
    busy[1:, 1:] = change.cumsum(0).cumsum(1)
    tops, lefts = _starts(height - down), _starts(width - across)
    sums = busy[tops + down][:, lefts + across] - busy[tops + down][:, lefts]
    sums -= busy[tops][:, lefts + across] - busy[tops][:, lefts]
    row_of, column = np.unravel_index(sums.argmax(), sums.shape)
    top, left = int(tops[row_of]), int(lefts[column])
    return left, top, left + across, top + down


def _starts(last: int) -> Array:
    """Where a detail may begin, from 0 to `last`: a quarter of its side apart."""
    return np.unique(np.append(np.arange(0, last, DETAIL // 4), last))


def _colour(picture: Array) -> Array:
    """A picture as its colours alone: (h, w, 3) in [0, 1]."""
    return np.asarray(as_image(picture).convert("RGB"), np.float64) / 255


def _side_by_side(panels: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    sheet = Image.new("RGB", (width, LINE + panels[0].height), "white")
    draw, left = ImageDraw.Draw(sheet), 0
    for panel, title in zip(panels, titles, strict=True):
        draw.text((left, LINE / 2), _fitting(draw, title, panel.width), "black", _font(), anchor="lm")
        sheet.paste(on_white(panel), (left, LINE))
        left += panel.width + GAP
    return sheet


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """The rows below each other, with a margin around."""
    width = max(one.width for one in rows) + 2 * GAP
    sheet = Image.new("RGB", (width, sum(one.height + GAP for one in rows) + GAP), "white")
    top = GAP
    for one in rows:
        sheet.paste(one, (GAP, top))
        top += one.height + GAP
    return sheet


def on_white(panel: Image.Image) -> Image.Image:
    """The picture in RGB, with white where it is transparent."""
    if panel.mode != "RGBA":
        return panel.convert("RGB")
    sheet = Image.new("RGB", panel.size, "white")
    sheet.paste(panel, mask=panel.getchannel("A"))
    return sheet


def _fitting(draw: ImageDraw.ImageDraw, title: str, width: int) -> str:
    """The title, cut where it is wider than its panel. Letters that the font lacks are boxes."""
    font = _font()
    while len(title) > 1 and draw.textlength(title, font) > width:
        title = title[:-2] + "…" if len(title) > 2 else title[:1]
    return title


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT)
