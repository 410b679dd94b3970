"""Pillow behind one boundary: its errors are the file's, its orientation is ours, its settings its host's."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from tests.runtime.conftest import Tudsr
from tests.runtime.pictures.test_fuzz import write
from tests.runtime.pictures.test_read import SRGB, chunk, copy_through, image, noise, png, save
from tudsr_runtime.batch.run import Batch
from tudsr_runtime.errors import InputError
from tudsr_runtime.pictures import read as image_io
from tudsr_runtime.pictures.picture import Picture, from_image
from tudsr_runtime.pictures.read import read_header, read_picture

ROOT = Path(__file__).parents[3]
MAKE = 0x010F
BYTE, SHORT, LONG = 1, 3, 4

XMP = {
    "attribute": b'<x:xmpmeta><rdf:Description tiff:Orientation="%d" tiff:Make="M"/></x:xmpmeta>',
    "single quotes": b"<x:xmpmeta><rdf:Description tiff:Orientation = '%d' tiff:Make='M'/></x:xmpmeta>",
    "element": b"<x:xmpmeta><tiff:Orientation>\n %d </tiff:Orientation><tiff:Make>M</tiff:Make></x:xmpmeta>",
}


def big_tiff(path: Path, tags: dict[int, object]) -> Path:
    """A BigTIFF of one grey strip; Pillow writes one where it is asked to."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info.update(tags)
    return save(image("L"), path, tiffinfo=info, big_tiff=True)


def odd_tiff(path: Path, tag: int, value: int) -> Path:
    """A TIFF in which a tag that holds a block of bytes is a number."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[tag] = value
    info.tagtype[tag] = SHORT
    return save(image("RGB"), path, tiffinfo=info)


def without_palette(path: Path) -> Path:
    header = struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0)
    pixels = zlib.compress(bytes(20))
    path.write_bytes(png(chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND")))
    return path


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg", "webp", "avif"])
def test_exif_of_a_big_tiff_is_kept_in_every_format(tmp_path: Path, suffix: str) -> None:
    path = big_tiff(tmp_path / "big.tif", {MAKE: "Maker"})
    assert path.read_bytes()[2] == 43
    result, notes = copy_through(path, tmp_path / f"out.{suffix}")
    assert result.getexif()[MAKE] == "Maker"
    assert not [note for note in notes if "EXIF" in note]
    # A block that begins like a BigTIFF would be read by few.
    if suffix != "tif":
        assert b"\x2b\x00" not in result.info["exif"][:12]


def test_a_palette_that_is_missing_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.png: .*damaged"):
        read_picture(read_header(without_palette(tmp_path / "a.png")))


@pytest.mark.parametrize(("tag", "said"), [(34675, "colour profile"), (700, "XMP")])
def test_a_block_that_is_a_number_costs_only_the_block(tmp_path: Path, tag: int, said: str) -> None:
    path = odd_tiff(tmp_path / "in.tif", tag, 5)
    result, notes = copy_through(path, tmp_path / "out.tif")
    assert np.array_equal(np.asarray(result), np.asarray(image("RGB")))
    assert [note for note in notes if said in note and "damaged" in note]
    assert not [note for note in notes if "EXIF" in note]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "tif"])
def test_a_profile_that_some_formats_cannot_hold_is_dropped_and_said(tmp_path: Path, suffix: str) -> None:
    path = save(image("RGB"), tmp_path / "in.tif", icc_profile=SRGB + bytes(17_000_000))
    picture = read_picture(read_header(path))
    assert picture.icc is None
    assert picture.notes == ("the colour profile, of 17 MB, is too large and dropped",)
    largest = save(image("RGB"), tmp_path / "big.tif", icc_profile=SRGB + bytes(255 * 65519 - len(SRGB)))
    write(read_picture(read_header(largest)), tmp_path / f"out.{suffix}")
    assert read_picture(read_header(tmp_path / f"out.{suffix}")).icc == SRGB.ljust(255 * 65519, b"\0")


def test_an_exif_text_that_is_no_hexadecimal_costs_only_the_exif(tmp_path: Path) -> None:
    path = save(image("RGB"), tmp_path / "in.png")
    plain = path.read_bytes()
    text = chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nxyz!\n")
    path.write_bytes(plain[:33] + text + plain[33:])
    result, notes = copy_through(path, tmp_path / "out.png")
    assert result.size == image("RGB").size
    assert "EXIF is damaged and dropped" in notes


def with_xmp(path: Path, xmp: bytes, place: str) -> Path:
    """A picture whose XMP is `xmp`, in the place that the format, or `place`, has for it."""
    smooth = Image.fromarray(noise(4, 3, 3)).resize((48, 64), Image.Resampling.BICUBIC)
    if path.suffix != ".png":
        tags = {700: xmp} if path.suffix == ".tif" else None
        options = {"tiffinfo": tags, "compression": place} if tags else {"xmp": xmp, "quality": 95}
        return save(smooth, path, **options)
    plain = save(smooth, path).read_bytes()
    packed = place == "packed"
    body = b"XML:com.adobe.xmp\0" + bytes([packed, 0]) + b"\0\0" + (zlib.compress(xmp) if packed else xmp)
    at = 33 if place == "before" else len(plain) - 12
    path.write_bytes(plain[:at] + chunk(b"iTXt", body) + plain[at:])
    return path


@pytest.mark.parametrize("form", XMP)
@pytest.mark.parametrize(
    ("suffix", "place"),
    [("jpg", ""), ("webp", ""), ("tif", "raw"), ("tif", "tiff_lzw"), ("png", "before"), ("png", "behind"),
     ("png", "packed")],
)  # fmt: skip
@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_an_orientation_that_stands_only_in_xmp_is_applied_once(
    tmp_path: Path, suffix: str, place: str, form: str, orientation: int
) -> None:
    path = with_xmp(tmp_path / f"in.{suffix}", XMP[form] % orientation, place)
    plain = with_xmp(tmp_path / f"plain.{suffix}", XMP[form] % 1, place)
    header = read_header(path)
    result, _ = copy_through(path, tmp_path / "out.png")
    untouched, _ = copy_through(plain, tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = orientation
    untouched.info["exif"] = exif.tobytes()
    expected = ImageOps.exif_transpose(Image.open(save(untouched, tmp_path / "told.png", exif=exif)))
    assert (header.width, header.height) == result.size == expected.size
    assert np.array_equal(np.asarray(result), np.asarray(expected))
    assert result.info["xmp"] == XMP[form] % 1


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif", "png"])
def test_the_orientation_of_exif_counts_before_that_of_xmp(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[MAKE] = 3, "Maker"
    xmp = XMP["element"] % 6
    if suffix == "tif":
        path = save(image("RGB"), tmp_path / "in.tif", tiffinfo={0x0112: 3, 700: xmp})
    else:
        path = save(image("RGB"), tmp_path / f"in.{suffix}", exif=exif, xmp=xmp)
    if suffix == "png":
        plain = path.read_bytes()
        path.write_bytes(plain[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + plain[33:])
    header = read_header(path)
    assert (header.orientation, header.width, header.height) == (3, 7, 5)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_leaves_the_word_to_xmp(tmp_path: Path, value: int) -> None:
    tags = {0x0112: value, 700: XMP["attribute"] % 6}
    header = read_header(save(image("RGB"), tmp_path / "in.tif", tiffinfo=tags))
    assert (header.orientation, header.width, header.height) == (6, 5, 7)


def test_xmp_does_not_turn_an_avif_again(tmp_path: Path) -> None:
    path = save(image("RGB"), tmp_path / "in.avif", xmp=XMP["attribute"] % 6)
    assert read_header(path).orientation == 1


def test_pixels_of_another_size_than_planned_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else a library turns while it decodes must never be stretched into the planned size."""
    header = read_header(save(image("RGB"), tmp_path / "in.png"))

    def turned(file: Image.Image, turn: int) -> Picture:
        return from_image(file.transpose(Image.Transpose.ROTATE_90), turn)

    monkeypatch.setattr(image_io, "from_image", turned)
    with pytest.raises(InputError, match="5 x 7, but the header says 7 x 5"):
        read_picture(header)


@pytest.mark.parametrize("mode", ["orientation", "format"])
def test_a_file_that_only_turns_in_between_is_noticed(tmp_path: Path, mode: str) -> None:
    square, exif = Image.fromarray(noise(5, 5, 3)), Image.Exif()
    exif[0x0112] = 6
    path = save(square, tmp_path / "in.png")
    header = read_header(path)
    square.save(path, format="PNG" if mode == "orientation" else "BMP", exif=exif)
    with pytest.raises(InputError, match="changed"):
        read_picture(header)


def test_a_pillow_image_of_the_callers_own_is_left_as_it_is() -> None:
    header = struct.pack(">IIBBBBB", 3, 1, 2, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"tRNS", b"\0\1"), chunk(b"IDAT", zlib.compress(b"\0\x1b"))
    with Image.open(io.BytesIO(png(*parts, chunk(b"IEND")))) as opened:
        before = dict(opened.info)
        first, again = from_image(opened), from_image(opened)
        assert opened.info == before
        assert first.alpha is not None
        assert again.alpha is not None


SNAPSHOT = """
import copy, locale, logging, os, signal, sys, threading, warnings
from pathlib import Path
import numpy as np
import PIL
from PIL import (Image, ImageFile, PngImagePlugin, TiffImagePlugin, TiffTags, JpegImagePlugin, ImageCms,
    WebPImagePlugin, AvifImagePlugin, BmpImagePlugin, ImagePalette, ImageSequence, ExifTags, ImageOps)
Image.init()

def plain(value, depth=0):
    if isinstance(value, dict):
        return {repr(k): plain(v, depth + 1) for k, v in value.items()} if depth < 4 else len(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v, depth + 1) for v in value] if depth < 4 else len(value)
    return repr(value) if isinstance(value, (int, float, str, bytes, bool, type(None))) else id(value)

def snapshot():
    state = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "PIL":
            for key, value in vars(module).items():
                if key != "__builtins__" and not key.startswith("__") and not hasattr(value, "__spec__"):
                    state[name, key] = plain(value)
                if isinstance(value, type) and value.__module__ == name:
                    state[name, key, "class"] = {k: id(v) for k, v in vars(value).items()}
    state["warnings"] = repr(warnings.filters), warnings.showwarning is SHOW
    state["logging"] = logging.root.level, repr(logging.root.handlers), logging.raiseExceptions
    state["locale"] = locale.setlocale(locale.LC_ALL)
    state["signals"] = {n: id(signal.getsignal(n)) for n in signal.valid_signals()}
    state["numpy"] = repr(np.geterr()), sys.getrecursionlimit(), os.getcwd()
    state["environment"] = {k: v for k, v in os.environ.items() if k not in ALLOWED}
    state["hooks"] = id(sys.excepthook), id(threading.excepthook), id(sys.stdout), id(sys.stderr)
    return state

SHOW, ALLOWED = warnings.showwarning, {"ORT_DISABLE_TELEMETRY"}
def changed(before):
    after = snapshot()
    return sorted(map(str, [k for k in before.keys() | after.keys() if before.get(k) != after.get(k)
                            and not (k in after and k not in before and k[0] not in OLD)]))
before = snapshot()
OLD = {name for name in sys.modules}
"""


def run_in_a_host(code: str, *arguments: object) -> list[object]:
    done = subprocess.run(
        [sys.executable, "-c", SNAPSHOT + code, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_neither_import_nor_work_leaves_a_trace_in_the_host(tmp_path: Path, small_bundle: Path) -> None:
    save(image("RGB"), tmp_path / "a.png", icc_profile=SRGB + bytes(2_000_000))
    save(image("RGB"), tmp_path / "b.tif", tiffinfo={0x0112: 6})
    save(image("RGB"), tmp_path / "c.jpg")
    (tmp_path / "d.png").write_bytes(b"no picture")
    code = """
import json
import tudsr_runtime, pkgutil, importlib
from tudsr_runtime import Upscaler
from tudsr_runtime.pictures import read as image_io
from tudsr_runtime.pictures import write as encode
from tudsr_runtime.pictures import picture
from tudsr_runtime.pictures import sixteen_bit as deep
from tudsr_runtime.pictures import tiff
from tudsr_runtime.pictures import png
from tudsr_runtime.pictures import metadata
print(json.dumps(changed(before)))
def read(path):
    header = image_io.read_header(path)
    return image_io.read_picture(header)
def everything():
    for path in sorted(Path(sys.argv[1]).glob("?.*")):
        try:
            made = read(path)
            bands = [np.zeros((made.height, made.width, 3), np.float32)]
            encode.write_picture(made, bands, made.width, made.height, path.with_name("out" + path.suffix))
        except tudsr_runtime.TudsrError:
            pass
threads = [threading.Thread(target=everything) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
with Upscaler(sys.argv[2], backend="onnxruntime", device="cpu") as upscaler:
    upscaler.upscale(Image.new("RGBA", (9, 8)), scale=2)
print(json.dumps(changed(before)))
"""
    assert run_in_a_host(code, tmp_path, small_bundle) == [[], []]


def test_a_plain_open_of_what_tudsr_alone_reads_is_as_before(tmp_path: Path) -> None:
    """Grey with alpha in 16 bits: Pillow says that it cannot, and shall go on to say so."""
    path = tmp_path / "la.tif"
    entries = [
        *[(256, LONG, 2), (257, LONG, 2), (258, SHORT, 16 | 16 << 16), (259, SHORT, 1), (262, SHORT, 1)],
        *[(273, LONG, 200), (277, SHORT, 2), (278, LONG, 2), (279, LONG, 16), (338, SHORT, 2)],
    ]
    body = b"".join(struct.pack("<HHII", tag, kind, 2 if tag == 258 else 1, v) for tag, kind, v in entries)
    directory = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + bytes(4)
    levels = np.arange(8, dtype="<u2").reshape(2, 2, 2) * 8000 + 1
    path.write_bytes(directory.ljust(200, b"\0") + levels.tobytes())
    picture = read_picture(read_header(path))
    assert np.array_equal(picture.levels, levels[..., 0])
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    for name in "abc":
        save(image("RGB"), made / f"{name}.png")
    return made


def of_b(function: Callable[..., object], name: Callable[..., str]) -> Callable[..., object]:
    """The function, but for b.png, where it fails as no one has foreseen."""

    def failing(*arguments: object, **options: object) -> object:
        if name(*arguments) == "b.png":
            raise ZeroDivisionError("nobody thought of it")
        return function(*arguments, **options)

    return failing


@pytest.mark.parametrize("place", ["planning", "settling", "reading", "writing"])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_bug_costs_one_picture_and_is_reported(
    tudsr: Tudsr, folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, as_json: bool
) -> None:
    from tudsr_runtime.batch import job
    from tudsr_runtime.batch import run as batch

    if place == "planning":
        monkeypatch.setattr(job, "read_header", of_b(job.read_header, lambda path, *_: path.name))
    elif place == "settling":
        monkeypatch.setattr(Batch, "_exists", of_b(Batch._exists, lambda _, made: made.source.name))
    elif place == "reading":
        monkeypatch.setattr(job, "read_picture", of_b(job.read_picture, lambda header, _: header.path.name))
    else:
        writes = of_b(batch.write_picture, lambda *given: given[4].name.replace("_x2", ""))
        monkeypatch.setattr(batch, "write_picture", writes)
    options = ["--json"] if as_json else []
    result = tudsr("upscale", folder, "--scale", 2, "-o", folder.parent / "out", *options)
    assert result.code == 4
    assert {p.name for p in (folder.parent / "out").glob("*.png")} == {"a_x2.png", "c_x2.png"}
    assert "bug of tudsr" in result.err
    assert "Traceback" in result.err
    assert "b.png" in result.err
    if as_json:
        (failed,) = [r["error"] for r in result.records if r.get("status") == "failed"]
        assert failed["type"] == "ZeroDivisionError"
        assert failed["exit_code"] == 1
        assert "nobody thought of it" in failed["traceback"]


def test_a_bug_in_a_single_picture_ends_with_1(
    tudsr: Tudsr, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tudsr_runtime.batch import job

    monkeypatch.setattr(job, "read_header", of_b(job.read_header, lambda path, *_: path.name))
    result = tudsr("upscale", folder / "b.png", "--json")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "traceback" in result.records[0]["error"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_is_to_end_the_run_ends_it(
    tudsr: Tudsr, folder: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    from tudsr_runtime.batch import job

    def interrupted(*_: object) -> object:
        raise stop(130)

    monkeypatch.setattr(job, "read_picture", interrupted)
    try:
        code = tudsr("upscale", folder, "--scale", 2).code
    except KeyboardInterrupt:
        code = 130
    assert code == 130
    assert len(list(folder.iterdir())) == 3


def test_an_encoder_that_refuses_is_that_pictures_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(image("RGB"), tmp_path / "in.png")
    monkeypatch.setattr(Image, "SAVE", {**Image.SAVE, "JPEG": lambda *_: struct.pack("B", 300)})
    with pytest.raises(InputError, match="cannot be encoded as JPEG"):
        copy_through(path, tmp_path / "out.jpg")
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"]


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jpg", "PNG"), ("a.jfif", "JPEG"), ("a.JPE", "JPEG"), ("a", "WEBP"), ("-", "BMP")]
)
def test_a_result_has_the_format_of_what_is_in_the_file(
    tudsr: Tudsr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    data = io.BytesIO()
    image("RGB").save(data, format=kind)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.getvalue())))
    if name != "-":
        name = str(tmp_path / name)
        Path(name).write_bytes(data.getvalue())
    out = tmp_path / "out"
    assert tudsr("upscale", name, "--scale", 2, "-o", out).code == 0
    (made,) = out.glob("[!.]*")
    with Image.open(made) as opened:
        assert opened.format == kind
        assert Image.EXTENSION[made.suffix.lower()] in (kind, "DIB")
