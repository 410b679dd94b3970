"""XMP made true of the new picture: what speaks of the old pixels, or of data that is not kept, goes.

The packet is edited as text: a parser of XML would write it with other prefixes, and obey its entities.
"""

from __future__ import annotations

import re

NAMESPACES = {
    "http://ns.adobe.com/tiff/1.0/": "tiff",
    "http://ns.adobe.com/exif/1.0/": "exif",
    "http://ns.adobe.com/xap/1.0/": "xmp",
    "http://ns.adobe.com/xmp/note/": "xmpNote",
    "http://ns.adobe.com/camera-raw-settings/1.0/": "crs",
    "http://ns.adobe.com/hdr-gain-map/1.0/": "hdrgm",
    "http://ns.apple.com/HDRGainMap/1.0/": "HDRGainMap",
    "http://ns.apple.com/pixeldatainfo/1.0/": "apdi",
    "http://ns.apple.com/depthData/1.0/": "depthData",
    "http://ns.google.com/photos/1.0/camera/": "GCamera",
    "http://ns.google.com/photos/1.0/container/": "Container",
    "http://ns.google.com/photos/1.0/container/item/": "Item",
    "http://ns.google.com/photos/1.0/image/": "GImage",
    "http://ns.google.com/photos/1.0/audio/": "GAudio",
    "http://ns.google.com/photos/1.0/depthmap/": "GDepth",
    "http://ns.google.com/photos/1.0/panorama/": "GPano",
    "http://ns.google.com/photos/dd/1.0/device/": "Device",
    "http://ns.adobe.com/xap/1.0/sType/Dimensions#": "stDim",
}
"""The usual prefix of each name space of which something goes or is scaled."""

ANNOUNCING = (
    "hdrgm",
    "HDRGainMap",
    "apdi",
    "depthData",
    "Container",
    "Item",
    "GImage",
    "GAudio",
    "GDepth",
    "Device",
)
"""Prefixes of which everything tells of other data in the file."""

STALE = {
    *(f"exif:{name}" for name in (
        "PixelXDimension", "PixelYDimension", "SubjectArea", "SubjectLocation", "FocalPlaneXResolution",
        "FocalPlaneYResolution", "FocalPlaneResolutionUnit", "NativeDigest", "CompressedBitsPerPixel",
        "ComponentsConfiguration",
    )),
    *(f"tiff:{name}" for name in (
        "ImageWidth", "ImageLength", "BitsPerSample", "Compression", "PhotometricInterpretation",
        "SamplesPerPixel", "PlanarConfiguration", "YCbCrSubSampling", "YCbCrPositioning", "YCbCrCoefficients",
        "ReferenceBlackWhite", "TransferFunction", "WhitePoint", "PrimaryChromaticities", "NativeDigest",
    )),
    "xmp:Thumbnails", "xmpNote:HasExtendedXMP", "crs:CropWidth", "crs:CropHeight", "crs:CropUnit",
    *(f"crs:{name}" for name in ("CropTop", "CropLeft", "CropBottom", "CropRight", "CropAngle", "HasCrop")),
    *(f"GCamera:{name}" for name in (
        "MotionPhoto", "MotionPhotoVersion", "MotionPhotoPresentationTimestampUs", "MicroVideo",
        "MicroVideoVersion", "MicroVideoOffset", "MicroVideoPresentationTimestampUs",
    )),
}  # fmt: skip
"""Properties of the old pixels, of how they were stored or cut, and of data behind them."""

ACROSS = re.compile(r"GPano:\w*(?:Width|Left|X)Pixels|GPano:InitialHorizontal\w*Pixels|stDim:w")
DOWN = re.compile(r"GPano:\w*(?:Height|Top|Y)Pixels|GPano:InitialVertical\w*Pixels|stDim:h")
"""Properties in pixels, of panoramas and of the picture that regions (mwg-rs) are fractions of."""

DECLARED = re.compile(r"""xmlns:([\w.-]+)\s*=\s*["']([^"'<>]{1,200})["']""")
TAG = re.compile(r"""<(/?)([^\s<>/!?"'=]{1,200})((?:[^<>"']|"[^"<]*"|'[^'<]*')*)>""")
ATTRIBUTE = re.compile(r"""(\s)([\w.-]{1,100}:[\w.-]{1,100})(\s*=\s*)("[^"]*"|'[^']*')""")
NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?")


def true_of_result(xmp: bytes) -> bytes | None:
    """The packet without what is stale; None if it is no XMP that can be edited."""
    return _edited(xmp, 1.0, 1.0, drop=True)


def scaled_xmp(xmp: bytes, across: float, down: float) -> bytes:
    """The packet with what it states in pixels multiplied."""
    return _edited(xmp, across, down, drop=False) or xmp


def said(xmp: bytes, *names: str) -> bool:
    """Whether one of these words stands anywhere in the packet."""
    return any(name.encode() in xmp for name in names)


def _edited(xmp: bytes, across: float, down: float, drop: bool) -> bytes | None:
    try:
        text = xmp.decode()
    except UnicodeDecodeError:
        return None
    usual = {prefix: NAMESPACES[uri] for prefix, uri in DECLARED.findall(text) if uri in NAMESPACES}

    def name(full: str) -> str:
        prefix, colon, local = full.partition(":")
        return f"{usual.get(prefix, prefix)}{colon}{local}"

    def attribute(match: re.Match[str]) -> str:
        space, full, equals, value = match.groups()
        if drop:
            return "" if _goes(name(full)) else match[0]
        return f"{space}{full}{equals}{value[0]}{_times(name(full), value[1:-1], across, down)}{value[0]}"

    kept: list[str] = []
    at, dropped, depth = 0, "", 0
    before = ""
    for tag in TAG.finditer(text):
        closes, full, rest = tag[1] == "/", tag[2], tag[3]
        opens = not closes and not rest.endswith("/")
        if dropped:
            depth += (opens - closes) if full == dropped else 0
            if depth == 0:
                at, dropped = tag.end(), ""
            continue
        between = text[at : tag.start()]
        kept.append(_times(name(before), between, across, down) if before and not drop else between)
        at = tag.end()
        if drop and not closes and _goes(name(full)):
            dropped, depth, before = (full, 1, "") if opens else ("", 0, "")
            continue
        before = full if opens else ""
        kept.append(f"<{tag[1]}{full}{ATTRIBUTE.sub(attribute, rest)}>")
    if dropped:
        return None
    return "".join([*kept, text[at:]]).encode()


def _goes(name: str) -> bool:
    return name in STALE or name.partition(":")[0] in ANNOUNCING


def _times(name: str, value: str, across: float, down: float) -> str:
    factor = across if ACROSS.fullmatch(name) else down if DOWN.fullmatch(name) else None
    stripped = value.strip()
    if factor is None or not NUMBER.fullmatch(stripped):
        return value
    # Sizes in pixels are whole.
    return str(round(float(stripped) * factor))
