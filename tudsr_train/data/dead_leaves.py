"""Synthetic training pictures with the statistics of photographs: textured dead leaves.

A dead-leaves picture is a stack of occluding shapes whose sizes follow a power law; it has the scale
invariance, the sharp occlusion edges and the 1/f spectrum of natural pictures (Lee, Mumford, Huang 2001).
Four things make a restorer trained on them work on photographs: the shapes cover the whole frame, they are
shaded inside, nearly all of them carry a texture, and colours are drawn around a common scene colour in CIE
Lab, so that they are natural and not saturated.

Everything is drawn at twice the size and averaged down, as a sensor does. Picture `i` of a seed is always
the same picture, whatever was drawn before it.
"""

from __future__ import annotations

import functools
import string
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Floats = NDArray[np.float32]

SUPERSAMPLE = 2  # pixels drawn per pixel kept, per axis
CURVE_POINTS = 28  # corners of the polygon that stands for an ellipse
STRAND_JOINTS = 12
CHARACTERS = string.ascii_letters + string.digits + "&%#?!+="


@dataclass
class SyntheticImages:
    """Pictures by number: `images[i]` is float32 (size, size, 3) in [0, 1], the same for the same seed."""

    size: int = 256
    """Side of a picture, pixels."""
    seed: int = 0
    num_textures: int = 64
    """Textures shared by all pictures of this seed; every shape shows one at an offset of its own."""
    _textures: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 0x7E57])
        side = self.size * SUPERSAMPLE
        self._textures = np.stack([texture(rng, side) for _ in range(self.num_textures)])

    def __getitem__(self, index: int) -> Floats:
        rng = np.random.default_rng([self.seed, index])
        side = self.size * SUPERSAMPLE
        shapes = _Shapes.draw(rng, side)
        picture = self._paint(rng, shapes, _label_map(rng, shapes, side))
        return _expose(rng, picture)

    def _paint(self, rng: np.random.Generator, shapes: _Shapes, label: NDArray[np.int32]) -> Floats:
        """Colour, shade and texture every labelled pixel; float32 (side, side, 3), unclipped."""
        side, n = len(label), len(shapes.radius)
        albedo = _scene_colours(rng, n)
        x = np.arange(side, dtype=np.int32)
        y = x[:, None]
        slope = rng.normal(0, 0.35, (n, 2)) / np.maximum(shapes.radius, 8)[:, None]
        slope = (slope * np.minimum(1, shapes.radius / 40)[:, None]).astype(np.float32)
        at_zero = -(slope * shapes.centre).sum(1).astype(np.float32)
        shade = slope[label, 0] * x + slope[label, 1] * y + at_zero[label]
        np.clip(shade, -0.6, 0.6, out=shade)

        contrast = rng.exponential(rng.uniform(0.05, 0.2), n).clip(0, 0.5)
        contrast[rng.random(n) < 0.12] = 0  # some surfaces are smooth
        contrast = contrast.astype(np.float32)
        which = rng.integers(0, self.num_textures, n).astype(np.int32)
        shift = rng.integers(0, side, (n, 2)).astype(np.int32)
        row, column = y + shift[label, 0], x + shift[label, 1]
        # cheaper than a remainder, and enough: neither sum reaches twice the side
        row -= side * (row >= side)
        column -= side * (column >= side)
        grain = self._textures.reshape(-1)[(which[label] * side + row) * side + column] * contrast[label]

        tint = (1 + rng.normal(0, 0.15, (n, 3))).astype(np.float32)
        if rng.random() < 0.5:  # a soft light over the whole scene
            shade += rng.uniform(0.02, 0.15) * self._textures[rng.integers(self.num_textures)]
        picture = np.empty((side, side, 3), np.float32)
        for c in range(3):
            picture[..., c] = albedo[label, c] * (1 + shade + grain * tint[label, c])
        return picture


def texture(rng: np.random.Generator, side: int) -> Floats:
    """Draw one periodic texture, float32 (side, side), mean 0 and standard deviation about 1.

    Anisotropic 1/f noise of random direction, elongation and slope; sometimes a grating or stripes warped
    by it.
    """
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    angle, elongation = rng.uniform(0, np.pi), np.exp(rng.normal(0, 0.9))
    u, v = fx * np.cos(angle) + fy * np.sin(angle), -fx * np.sin(angle) + fy * np.cos(angle)
    frequency = np.hypot(u * elongation, v / elongation)
    corner = 10 ** rng.uniform(-2.6, -1.2)  # cycles per pixel below which the spectrum is flat
    spectrum = np.fft.rfft2(rng.standard_normal((side, side)))
    noise = np.fft.irfft2(spectrum / np.maximum(frequency, corner) ** rng.uniform(0.6, 1.6), (side, side))
    noise = (noise - noise.mean()) / noise.std()
    if rng.random() < 0.4:
        # whole numbers of cycles along each axis keep the grating periodic
        cycles = rng.uniform(0.01, 0.2) * side * np.array([np.cos(angle), np.sin(angle)])
        y, x = np.mgrid[:side, :side] / side
        phase = 2 * np.pi * (np.round(cycles[0]) * x + np.round(cycles[1]) * y)
        noise = np.sin(phase + noise * rng.uniform(0, 2))
        if rng.random() < 0.5:
            noise = np.tanh(4 * noise)
    return noise.astype(np.float32)


@dataclass(frozen=True)
class _Shapes:
    """The stack, bottom first: n shapes, lengths in drawn pixels, angles in radians."""

    radius: NDArray[np.float64]
    centre: NDArray[np.float64]
    angle: NDArray[np.float64]
    aspect: NDArray[np.float64]
    kind: NDArray[np.int64]

    @classmethod
    def draw(cls, rng: np.random.Generator, side: int) -> _Shapes:
        smallest, largest = rng.uniform(2, 8), rng.uniform(0.15, 0.6) * side
        exponent = 1 - rng.uniform(2.2, 3.2)
        # a number that grows with the area keeps the look of a picture the same at every size
        n = int(np.exp(rng.uniform(np.log(300), np.log(2500))) * (side / 512) ** 2 * 0.7)
        low, high = smallest**exponent, largest**exponent
        radius = (low + rng.random(n) * (high - low)) ** (1 / exponent)
        radius = np.concatenate(
            [rng.uniform(0.3, 0.8, 6) * side, radius]
        )  # full cover: a few huge ones below all
        n = len(radius)
        aspect = np.where(rng.random(n) < 0.3, rng.uniform(0.05, 0.3, n), rng.uniform(0.4, 1, n))
        kind = rng.choice(4, n, p=(0.45, 0.25, 0.25, 0.05))
        kind[:6] = 0
        centre = rng.uniform(-0.1 * side, 1.1 * side, (n, 2))
        return cls(radius, centre, rng.uniform(0, 2 * np.pi, n), aspect, kind)


def _label_map(rng: np.random.Generator, shapes: _Shapes, side: int) -> NDArray[np.int32]:
    """Number of the topmost shape at every pixel, int32 (side, side)."""
    canvas = Image.new("I", (side, side), 0)
    pen = ImageDraw.Draw(canvas)
    pen.fontmode = "1"
    curve = np.linspace(0, 2 * np.pi, CURVE_POINTS, endpoint=False)
    circle = np.stack([np.cos(curve), np.sin(curve)], 1)
    cos, sin = np.cos(shapes.angle), np.sin(shapes.angle)
    for i, (kind, radius) in enumerate(zip(shapes.kind, shapes.radius, strict=True)):
        turn = np.array([[cos[i], sin[i]], [-sin[i], cos[i]]])
        if kind == 0:
            outline = circle * (radius, radius * shapes.aspect[i])
            pen.polygon((outline @ turn + shapes.centre[i]).ravel().tolist(), fill=i)
        elif kind == 1:
            corners = int(rng.integers(3, 9))
            around, reach = (
                np.sort(rng.uniform(0, 2 * np.pi, corners)),
                radius * rng.uniform(0.5, 1.3, corners),
            )
            outline = np.stack([reach * np.cos(around), shapes.aspect[i] * reach * np.sin(around)], 1)
            pen.polygon((outline @ turn + shapes.centre[i]).ravel().tolist(), fill=i)
        elif kind == 2:
            heading = np.cumsum(rng.normal(0, 0.35, STRAND_JOINTS)) + shapes.angle[i]
            steps = np.stack([np.cos(heading), np.sin(heading)], 1) * radius * 0.25
            width = max(1, round(radius * shapes.aspect[i] * 0.15))
            joint = "curve" if width > 3 else None
            pen.line(
                (shapes.centre[i] + np.cumsum(steps, 0)).ravel().tolist(), fill=i, width=width, joint=joint
            )
        else:
            word = "".join(rng.choice(list(CHARACTERS), int(rng.integers(1, 9))))
            font = _font(round(np.clip(radius, 10, 0.3 * side)))
            pen.text(tuple(shapes.centre[i]), word, fill=i, font=font)
    return np.asarray(canvas, np.int32)


@functools.lru_cache(maxsize=256)
def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(height)


def _scene_colours(rng: np.random.Generator, n: int) -> Floats:
    """n sRGB colours around one scene colour, float32 (n, 3) in [0, 1]."""
    scene = (rng.uniform(25, 75), rng.normal(0, 8), rng.normal(5, 12))
    spread = (rng.uniform(8, 28), rng.uniform(3, 16), rng.uniform(3, 18))
    lab = rng.normal(scene, spread, (n, 3))
    lab[:, 0] = lab[:, 0].clip(2, 98)
    return lab_to_srgb(lab)


def lab_to_srgb(lab: NDArray[np.float64]) -> Floats:
    """CIE Lab (D65; L in 0..100) of shape (n, 3) to sRGB in [0, 1], clipped (CIE 15, IEC 61966-2-1)."""
    fy = (lab[:, 0] + 16) / 116
    f = np.stack([fy + lab[:, 1] / 500, fy, fy - lab[:, 2] / 200], 1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.95047, 1.0, 1.08883)
    to_rgb = np.array(
        [
            [3.2404542, -1.5371385, -0.4985314],
            [-0.9692660, 1.8760108, 0.0415560],
            [0.0556434, -0.2040259, 1.0572252],
        ]
    )
    linear = (xyz @ to_rgb.T).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).astype(
        np.float32
    )


def _expose(rng: np.random.Generator, picture: Floats) -> Floats:
    """Uneven defocus, a slight blur, the average down by `SUPERSAMPLE`; float32 (h, w, 3) in [0, 1]."""
    # Pillow blurs 8-bit pictures only; half a level of rounding is averaged away by the supersampling
    drawn = Image.fromarray((picture.clip(0, 1) * 255 + 0.5).astype(np.uint8))
    if rng.random() < 0.3:
        blurred = drawn.filter(ImageFilter.GaussianBlur(rng.uniform(1, 6)))
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5), dtype=np.uint8))
        drawn = Image.composite(blurred, drawn, coarse.resize(drawn.size, Image.Resampling.BICUBIC))
    if rng.random() < 0.7:
        drawn = drawn.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3)))
    levels = np.asarray(drawn, np.uint16)
    rows = sum((levels[i::SUPERSAMPLE] for i in range(1, SUPERSAMPLE)), levels[::SUPERSAMPLE])
    total = sum((rows[:, i::SUPERSAMPLE] for i in range(1, SUPERSAMPLE)), rows[:, ::SUPERSAMPLE])
    return total.astype(np.float32) / np.float32(255 * SUPERSAMPLE**2)
