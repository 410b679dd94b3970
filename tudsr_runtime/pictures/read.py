"""Picture files: what a header says, and reading within limits. `write` writes.

A file is known by its content, never by its name, and only those in `FORMATS` are ever decoded.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from PIL import Image, ImageFile, UnidentifiedImageError

from tudsr_runtime.errors import InputError, MemoryExhausted
from tudsr_runtime.pictures.carried import carried, check_colour
from tudsr_runtime.pictures.containers import jpeg_scans
from tudsr_runtime.pictures.formats import FORMATS
from tudsr_runtime.pictures.metadata import kept_exif, kept_icc, kept_xmp, orientation, upright_size
from tudsr_runtime.pictures.picture import Picture, from_channels, from_image
from tudsr_runtime.pictures.pillow import DamageIgnored, borrowed, is_pillows, open_image
from tudsr_runtime.pictures.sixteen_bit import decode_sixteen_bit, is_sixteen_bit, with_transparent
from tudsr_runtime.streams import raw_stderr_hidden

Metadata = Literal["keep", "strip"]

MAX_MEGAPIXELS = 100
"""10^6 pixels that a picture may have if nothing else is said."""
MAX_SCANS = 100
"""Scans of a JPEG; encoders write about ten, and libjpeg decodes every one of them over all pixels."""
GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N")
WHOLE_FRAMES = ("WEBP", "AVIF")
"""Formats of which Pillow holds the decoded frame besides the picture."""

SIGNATURES = (
    (rb"GIF8", "a GIF"),
    (rb"MM\x00\+", "a BigTIFF whose numbers are big-endian, which is not read"),
    (
        rb"II[*+]\x00|MM\x00\*",
        "a TIFF that is damaged, or whose pixels are of a kind that is not supported (floating point?)",
    ),
    (
        rb"\xff\xd8\xff",
        "a JPEG that is damaged, or of a kind that is not supported (12 bits per channel?)",
    ),
    (
        rb"\x89PNG|RIFF.{4}WEBP|BM|.{4}ftypavi[fs]",
        "damaged: its header cannot be read",
    ),
    (rb".{4}ftyp(heic|heix|heim|hevc|mif1|msf1)", "an HEIC picture"),
    (rb".{4}ftyp", "a video"),
    (rb"\x1a\x45\xdf\xa3|RIFF.{4}AVI ", "a video"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "a JPEG XL picture"),
    (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (rb"%PDF", "a PDF document"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript document"),
    (rb"8BPS", "a Photoshop document"),
    (rb"v/1\x01", "an OpenEXR picture"),
    (rb"#\?RADIANCE|#\?RGBE", "a Radiance HDR picture"),
    (rb"\x00\x00\x01\x00", "an icon"),
    (rb"\s*(<\?xml|<svg)", "an SVG or other XML document"),
    (rb"\s*<(!doctype )?html", "a web page"),
    (rb"PK\x03\x04", "a ZIP archive"),
)
"""How files begin that people take for pictures, and what to call them."""


@dataclass(frozen=True)
class Header:
    """What a file says about itself before any pixel is decoded.

    `width` and `height` are upright: `orientation`, an EXIF orientation, turns the stored pixels so.
    `pixel_bytes` are kept of each pixel, `decoding_bytes` held in all while it is decoded, about.
    `max_megapixels` is what the picture was allowed to have.
    """

    path: Path
    format: str
    width: int
    height: int
    has_alpha: bool
    orientation: int = 1
    pixel_bytes: int = 3
    decoding_bytes: int = 0
    max_megapixels: float = MAX_MEGAPIXELS


def read_header(path: Path, max_megapixels: float = MAX_MEGAPIXELS) -> Header:
    """Look at a picture without decoding it.

    Raises:
        InputError: no plain file, not a picture in a readable format, damaged, more than one frame, more than
            `max_megapixels` (10^6 pixels), or made to be slow to decode.
    """
    with borrowed(), _opened(path, max_megapixels) as image:
        turn, kind = orientation(image), _format(image)
        check_colour(path, kind)
        if kind == "JPEG":
            _check_scans(path)
        alpha = image.has_transparency_data
        kept, decoding = _pixel_bytes(image, turn != 1)
        pixels = image.width * image.height
        return Header(
            path, kind, *upright_size(image, turn), alpha, turn, kept, pixels * decoding, max_megapixels
        )


def read_picture(header: Header, metadata: Metadata = "keep") -> Picture:
    """Decode the picture that `header` describes.

    `strip` leaves EXIF and XMP out. The colour profile stays: without it the colours would change.

    Raises:
        InputError: as `read_header`; also an unsupported pixel format, the file is no longer the same, or
            its pixels are not of the size that the header says.
        MemoryExhausted: the decoded picture does not fit into memory.
    """
    with borrowed() as warned, _opened(header.path, header.max_megapixels) as image:
        turn, planned = orientation(image), (header.width, header.height)
        if (upright_size(image, turn), turn, _format(image)) != (planned, header.orientation, header.format):
            raise InputError("the file changed while tudsr was running")
        notes = ["only the first picture of the file is used"] if image.format == "MPO" else []
        if header.format == "AVIF" and _avif_exceeds_8_bits(header.path):
            notes.append("more than 8 bits per channel are processed as 8")
        # What is no profile would fail wherever one is used.
        image.info["icc_profile"], *lost = kept_icc(image)
        picture = _decoded(header, image, turn)
        decoded = picture.width, picture.height
        if decoded != planned:
            raise InputError(f"the pixels are {_by(*decoded)}, but the header says {_by(*planned)}")
        # First, as `kept_exif` takes out of the image's EXIF what is told of here.
        found = carried(header.path, image, header.format, keep=metadata == "keep")
        exif, xmp = None, None
        if metadata == "keep":
            exif, exif_lost = kept_exif(image)
            xmp, xmp_lost = kept_xmp(image)
            lost += [exif_lost, xmp_lost]
    notes += [*picture.notes, *filter(None, lost), *found.notes, *warned]
    icc = None if found.colour and found.colour_wins else picture.icc or found.icc
    return replace(picture, icc=icc, exif=exif, xmp=xmp, carried=found, notes=tuple(notes))


def _by(width: int, height: int) -> str:
    return f"{width} x {height}"


def _pixel_bytes(image: ImageFile.ImageFile, turned: bool) -> tuple[int, int]:
    """Bytes of a pixel as it is kept, and of all that is made of it while it is decoded; measured."""
    grey, deep = image.mode in GREY_MODES, is_sixteen_bit(image) or image.mode.startswith("I;16")
    kept = (1 if grey else 3) * (2 if deep else 1)
    decoding = (6 if grey else 26) if deep else (4 if grey else 14)
    decoding += (1 if grey else 4) * turned
    if image.format in WHOLE_FRAMES:
        decoding += 8
    if not image.has_transparency_data:
        return kept, decoding
    # Alpha is kept in float32 too; what it hides is filled in float32.
    return kept + (6 if deep else 5), decoding + 56


def _check_scans(path: Path) -> None:
    scans = jpeg_scans(path.read_bytes())
    if scans > MAX_SCANS:
        raise InputError(
            f"a JPEG of {scans} scans, each of which costs as much as a whole picture; at most {MAX_SCANS}",
            hint="save it again with another program",
        )


def _decoded(header: Header, image: ImageFile.ImageFile, turn: int) -> Picture:
    if not is_sixteen_bit(image):
        return from_image(image, turn)
    with _opened(header.path, header.max_megapixels) as again:
        levels = decode_sixteen_bit(image, again, turn)
    levels = with_transparent(levels, image.info.get("transparency"))
    return from_channels(levels, image.info.get("icc_profile"))


def _avif_exceeds_8_bits(path: Path) -> bool:
    """Whether the configuration of the AV1 codec says 10 or 12 bits (AV1-ISOBMFF 2.3.3, high_bitdepth)."""
    with open(path, "rb") as file:
        found = re.search(rb"av1C\x81.(.)", file.read(65536), re.DOTALL)
    return found is not None and bool(found[1][0] & 0x40)


@contextmanager
def _opened(path: Path, max_megapixels: float) -> Iterator[ImageFile.ImageFile]:
    """The picture, opened but not decoded; whatever goes wrong with it inside the block is an InputError."""
    try:
        with raw_stderr_hidden(), _open_plain_file(path) as file, _identified(file) as image:
            _check_size(image, max_megapixels)
            _check_single_frame(image)
            yield image
    except InputError as error:
        raise InputError(f"{path}: {error}", hint=error.hint) from error
    except MemoryError as error:
        raise MemoryExhausted(f"{path}: not enough memory to decode it") from error
    except Exception as error:
        if not is_pillows(error):
            raise
        reason = str(error) or type(error).__name__
        raise InputError(f"{path}: the file is damaged or cut short ({reason})") from error


def _open_plain_file(path: Path) -> BinaryIO:
    # Opening a FIFO would wait for a writer, and a device may never end.
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError("a folder, not a picture")
        if not stat.S_ISREG(mode):
            hint = f"tudsr upscale - < {path}" if stat.S_ISFIFO(mode) else None
            raise InputError("not a plain file", hint=hint)
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}") from error


def _identified(file: BinaryIO) -> ImageFile.ImageFile:
    beginning = file.read(64)
    file.seek(0)
    try:
        return open_image(file, tuple(FORMATS))
    except UnidentifiedImageError as error:
        what = "the file is an animated GIF" if _is_animated_gif(file) else _what_it_is(beginning)
        *names, last = (kind.name for kind in FORMATS.values())
        hint = f"{', '.join(names)} and {last} can be read; convert it"
        raise InputError(what, hint=hint) from error


def _is_animated_gif(file: BinaryIO) -> bool:
    file.seek(0)
    with DamageIgnored(), Image.open(file, formats=("GIF",)) as image:
        return bool(getattr(image, "is_animated", False))
    return False


def _what_it_is(beginning: bytes) -> str:
    if not beginning:
        return "the file is empty"
    for pattern, name in SIGNATURES:
        if re.match(pattern, beginning, re.DOTALL | re.IGNORECASE):
            return f"the file is {name}"
    return f"not a picture (the file begins with {beginning[:8]!r})"


def _check_size(image: Image.Image, max_megapixels: float) -> None:
    megapixels = image.width * image.height / 1e6
    if megapixels > max_megapixels:
        raise InputError(
            f"{_by(image.width, image.height)} are {megapixels:.0f} megapixels; the limit of an input is "
            f"{max_megapixels:g} (--max-input-megapixels)",
            hint=f"--max-input-megapixels {math.ceil(megapixels)}",
        )


def _check_single_frame(image: Image.Image) -> None:
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return
    what = "a TIFF with several pages" if image.format == "TIFF" else f"an animated {image.format}"
    raise InputError(what, hint="save the frames as single pictures")


def _format(image: Image.Image) -> str:
    # Phones write JPEGs with a second picture (depth, preview) behind the first, which Pillow calls MPO.
    return "JPEG" if image.format == "MPO" else str(image.format)
