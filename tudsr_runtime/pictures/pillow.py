"""Pillow as tudsr needs it: opened without a trace in what others see of it, and one boundary for its errors.

A file makes Pillow raise nearly anything: AssertionError, TypeError, struct.error, RecursionError. So what
counts is not the type, but whether the exception came through Pillow: then the file is at fault.
"""

from __future__ import annotations

import math
import struct
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError
from PIL._util import DeferredError

from tudsr_runtime.errors import TudsrError

MAX_TEXT_CHUNK = 16 << 20
"""Bytes of a compressed text or profile in a PNG. Pillow's 1 MiB is less than some scanners' profiles."""

GREY_ALPHA_16 = (16, 16)
"""Bits per sample of a TIFF of grey and alpha that Pillow has no mode for."""

UNREADABLE = (SyntaxError, IndexError, TypeError, struct.error)
"""What `Image.open` takes as "not a picture of this format"."""

_LOCK = threading.RLock()


class StillTiff(TiffImagePlugin.TiffImageFile):
    """A TIFF as it is stored: Pillow's own turns the pixels by themselves, by a rule of its own.

    Grey with alpha in 16 bits, which Pillow refuses, is opened as RGBA of 8 bits, which has the same octets:
    `grey_alpha` then names what they are, as Pillow does in a PNG ("LA;16L", or "La" where grey is stored
    multiplied by alpha).
    """

    grey_alpha = ""
    stored_orientation: object = None

    def getexif(self) -> Image.Exif:
        """EXIF and nothing else: also after decoding, when Pillow has let go of the file, and without XMP."""
        if self.fp is None and not isinstance(self._fp, DeferredError):
            self.fp = self._fp
        xmp = self.info.pop("xmp", None)
        try:
            return super().getexif()
        finally:
            self.info |= {} if xmp is None else {"xmp": xmp}

    def load_end(self) -> None:
        """Do nothing: Pillow's own would turn the pixels here."""

    def _setup(self) -> None:
        T, tags = TiffImagePlugin, self.tag_v2
        self.stored_orientation = tags.pop(274, None)
        kind = "La" if tags.get(T.EXTRASAMPLES) == (1,) else "LA"
        bits, extra = tags.get(T.BITSPERSAMPLE), tags.get(T.EXTRASAMPLES)
        if (
            tags.get(T.PHOTOMETRIC_INTERPRETATION) == 1
            and bits in (GREY_ALPHA_16, GREY_ALPHA_16[:1])
            and tags.get(T.SAMPLESPERPIXEL) == 2
            and tags.get(T.PLANAR_CONFIGURATION, 1) == 1
            and tags.get(T.FILLORDER, 1) == 1
            and set(tags.get(T.SAMPLEFORMAT, (1,))) == {1}
            and extra in ((1,), (2,))
        ):
            order = "B" if tags.prefix == b"MM" else "L"
            self.grey_alpha = f"{kind};16{order}"
            tags[T.BITSPERSAMPLE], tags[T.SAMPLESPERPIXEL] = (8, 8, 8, 8), 4
            tags[T.PHOTOMETRIC_INTERPRETATION], tags[T.EXTRASAMPLES] = 2, (2,)
        super()._setup()
        if self.grey_alpha and self.use_load_libtiff:
            self.grey_alpha = f"{kind};16N"


def open_image(file: BinaryIO, formats: tuple[str, ...]) -> ImageFile.ImageFile:
    """Open a file as `Image.open` does, but a TIFF as a `StillTiff`. Raises what that raises."""
    beginning = file.read(16)
    file.seek(0)
    if "TIFF" not in formats or not beginning.startswith(tuple(TiffImagePlugin.PREFIXES)):
        return Image.open(file, formats=formats)
    try:
        image = StillTiff(file)
    except UNREADABLE as error:
        raise UnidentifiedImageError(str(error)) from error
    Image._decompression_bomb_check(image.size)
    return image


@contextmanager
def borrowed() -> Iterator[list[str]]:
    """Pillow with the limits that reading needs, as before when the block ends; one thread at a time.

    Yields what Pillow warns of in the block, each once; complete when the block has ended.
    """
    messages: list[str] = []
    # The limit, and the filters of `warnings`, belong to the whole process: without the lock, two threads
    # would restore what the other had set.
    with _LOCK:
        before, pixels = PngImagePlugin.MAX_TEXT_CHUNK, Image.MAX_IMAGE_PIXELS
        PngImagePlugin.MAX_TEXT_CHUNK = max(before, MAX_TEXT_CHUNK)
        # The reader has a limit of its own, which can be raised for one picture.
        Image.MAX_IMAGE_PIXELS = None
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield messages
        finally:
            PngImagePlugin.MAX_TEXT_CHUNK, Image.MAX_IMAGE_PIXELS = before, pixels
    messages += dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught)


def is_pillows(error: Exception) -> bool:
    """Whether an exception came through Pillow, or is the system's; else it is deliberate, or our bug."""
    if isinstance(error, TudsrError | MemoryError):
        return False
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, OSError) or any(name.partition(".")[0] == "PIL" for name in modules)


class DamageIgnored:
    """A block that ends, as by `contextlib.suppress`, at an exception that is Pillow's (`is_pillows`)."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        return isinstance(error, Exception) and is_pillows(error)


def finite_numbers(value: object) -> tuple[float, ...]:
    """The numbers of a tag, one or several, as Pillow shows them; empty if one is none or not finite."""
    values = value if isinstance(value, Iterable) and not isinstance(value, str | bytes) else (value,)
    try:
        numbers = tuple(float(part) for part in values)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return ()
    return numbers if all(math.isfinite(number) for number in numbers) else ()
