"""Colour that a file describes without an ICC profile: code points (H.273), PNG's gAMA and cHRM, TIFF's tags.

What an ICC profile can say is written as one, which every format but BMP holds. HDR is refused: the model
works in the standard range, and pixels of one transfer function under the name of another are falsified.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

D50 = np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D65 = (0.3127, 0.3290)
C = (0.310, 0.316)
P3 = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
NTSC = (0.630, 0.340, 0.310, 0.595, 0.155, 0.070)

PRIMARIES = {
    1: (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06),
    4: (*C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, *NTSC),
    7: (*D65, *NTSC),
    8: (*C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, *P3),
    12: (*D65, *P3),
    22: (*D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
"""ColourPrimaries of H.273, table 2: x, y of white, red, green and blue."""

SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
BT709_CURVE = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
CURVES: dict[int, tuple[float, ...]] = {
    1: BT709_CURVE, 4: (2.2,), 5: (2.8,), 6: BT709_CURVE, 8: (1.0,), 13: SRGB_CURVE, 14: BT709_CURVE,
    15: BT709_CURVE,
}  # fmt: skip
"""TransferCharacteristics of H.273, table 3, inverted: a gamma, or g, a, b, c, d of ICC's curve of type 3."""
UNSPECIFIED = 2
HDR = {16: "PQ", 18: "HLG"}

ADOBE_RGB = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
ADOBE_GAMMA = (563 / 256,)
TIFF_GAMMA = (2.2,)
"""The gamma of a TIFF that states no transfer function (TIFF 6.0, section 20)."""


@dataclass(frozen=True)
class Colour:
    """`primaries`: x, y of white, red, green, blue; `curve`: see `CURVES`; `name`: where it was said, how."""

    primaries: tuple[float, ...]
    curve: tuple[float, ...]
    name: str

    @property
    def is_srgb(self) -> bool:
        """Whether this is what pixels without any description are taken for."""
        return np.allclose(self.primaries, PRIMARIES[1], atol=1e-3) and self.curve == SRGB_CURVE

    def profile(self, grey: bool) -> bytes:
        """An ICC profile (version 4.3) that says the same, of RGB or of grey."""
        curve = _curve(self.curve)
        adapted = _adaptation(_xyz(*self.primaries[:2]))
        tags = {b"desc": _text(f"{self.name} (by tudsr)"), b"cprt": _text("CC0"), b"wtpt": _xyz_tag(D50)}
        tags[b"chad"] = b"sf32" + bytes(4) + _fixed(adapted.ravel())
        if grey:
            return _icc(b"GRAY", {**tags, b"kTRC": curve})
        columns = (adapted @ _to_xyz(self.primaries)).T
        for letter, column in zip((b"r", b"g", b"b"), columns, strict=True):
            tags |= {letter + b"XYZ": _xyz_tag(column), letter + b"TRC": curve}
        return _icc(b"RGB ", tags)


def from_code_points(where: str, primaries: int, transfer: int) -> Colour | str | None:
    """The colour of H.273's numbers; a text that says why it must be refused; None if nothing is said."""
    if transfer in HDR:
        return f"an HDR picture ({HDR[transfer]}, {where} {primaries}/{transfer})"
    if {primaries, transfer} == {UNSPECIFIED}:
        return None
    primaries = 1 if primaries == UNSPECIFIED else primaries
    transfer = 13 if transfer == UNSPECIFIED else transfer
    if primaries not in PRIMARIES or transfer not in CURVES:
        return f"a picture whose colours are of a kind that is not supported ({where} {primaries}/{transfer})"
    return Colour(PRIMARIES[primaries], CURVES[transfer], f"{where} {primaries}/{transfer}")


def from_chromaticities(where: str, values: tuple[float, ...], curve: tuple[float, ...]) -> Colour | None:
    """The colour of these primaries; None if they span nothing."""
    if len(values) != 8 or not all(0 < value < 1 for value in values) or not 0.1 <= curve[0] <= 10:
        return None
    if abs(np.linalg.det(_triangle(values))) < 1e-3:
        return None
    return Colour(tuple(values), curve, where)


def _triangle(primaries: tuple[float, ...]) -> Matrix:
    return np.stack([_xyz(*primaries[at : at + 2]) for at in (2, 4, 6)], axis=1)


def _xyz(x: float, y: float) -> Matrix:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _to_xyz(primaries: tuple[float, ...]) -> Matrix:
    triangle = _triangle(primaries)
    scaled: Matrix = triangle * np.linalg.solve(triangle, _xyz(*primaries[:2]))
    return scaled


def _adaptation(white: Matrix) -> Matrix:
    """Bradford's, from that white to D50."""
    ratio = (BRADFORD @ D50) / (BRADFORD @ white)
    adaptation: Matrix = np.linalg.inv(BRADFORD) @ np.diag(ratio) @ BRADFORD
    return adaptation


def _fixed(values: Matrix | tuple[float, ...]) -> bytes:
    whole = [round(min(max(float(value), -32768), 32767) * 65536) for value in values]
    return struct.pack(f">{len(whole)}i", *whole)


def _xyz_tag(values: Matrix) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(values)


def _curve(values: tuple[float, ...]) -> bytes:
    return b"para" + bytes(4) + struct.pack(">HH", 0 if len(values) == 1 else 3, 0) + _fixed(values)


def _text(text: str) -> bytes:
    words = text.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(words), 28) + words


def _icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    body, table, start = b"", struct.pack(">I", len(tags)), 128 + 4 + 12 * len(tags)
    for name, block in tags.items():
        table += name + struct.pack(">II", start + len(body), len(block))
        body += block + bytes(-len(block) % 4)
    header = struct.pack(">I4sI4s4s4s", start + len(body), bytes(4), 0x04300000, b"mntr", space, b"XYZ ")
    header += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _fixed(D50) + bytes(48)
    return header + table + body
