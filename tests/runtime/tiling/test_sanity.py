from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data

from tudsr_runtime import Upscaler
from tudsr_runtime.batch.options import parse_strength
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.engines.backend import Precision
from tudsr_runtime.errors import DeviceError, MemoryExhausted, NotFiniteError, UsageError
from tudsr_runtime.tiling.sanity import find_fault

MakeBundle = Callable[..., Path]


class FakeBackend:
    """Engines as the test says: `runs[precision]`, by the tile's edge; all of them are one array function."""

    def __init__(self, **runs: Callable[[np.ndarray], np.ndarray]) -> None:
        self.runs = runs
        self.loaded: list[tuple[str, int]] = []

    def probe(self, _: str) -> None:
        return None

    def precision(self, _: str, asked: str, _offered: tuple[str, ...]) -> Precision:
        return Precision(next(iter(self.runs)) if asked == "auto" else asked, "it is fake")

    def load(self, graph: Path, variant: Any, target: Any) -> Any:
        self.loaded.append((target.precision, variant.tile))
        unet = graph.parent.name.startswith("unet")
        return FakeEngine(self.runs[target.precision] if unet else lambda x: x)

    def chain(self, _: object) -> None:
        return None


class FakeEngine:
    parallel = 2

    def __init__(self, run: Callable[[np.ndarray], np.ndarray]) -> None:
        self.run = run

    def close(self) -> None:
        pass


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path) -> Bundle:
    return open_bundle(make_bundle(tmp_path / "b", tile=128, smaller=(64,)))


@pytest.fixture
def upscaler_with(bundle: Bundle, install_backend: Callable[..., None]) -> Callable[..., tuple[Any, ...]]:
    """`upscaler_with(backend)`: an Upscaler on it, and what it told its user."""

    def make(backend: FakeBackend, **options: Any) -> tuple[Upscaler, list[str]]:
        install_backend(backend)
        notes: list[str] = []
        return Upscaler(bundle, overlap=24, notify=notes.append, **options), notes

    return make


def photo(size: int = 40) -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[:size, :size])


def planes(picture: np.ndarray) -> np.ndarray:
    return (picture.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        (lambda x: x, None),
        (lambda x: x * 0.5 + 0.2, None),
        (lambda x: np.full_like(x, np.nan), "made NaN or infinity"),
        (lambda x: np.full_like(x, -0.2), "kept 0% of the picture's contrast"),
        (lambda x: np.ones_like(x) - x * 0.01, "kept 1% of the picture's contrast"),
        (lambda x: x * 1e38, "made contrast of"),
        (lambda x: x * -1, "changed the mean of the picture by"),
        (lambda x: 2 * x.mean(axis=(1, 2), keepdims=True) - x, "made another picture"),
        (lambda x: x * -0.3, "made another picture"),
        (lambda x: x + 0.7, "changed the mean of the picture by 35%"),
        (lambda x: x - 0.7, "changed the mean of the picture by 35%"),
        (lambda x: x + np.array([0, 0, 0.6])[:, None, None], "changed the mean of the picture by 30%"),
        (lambda x: x[:, ::-1], "made another picture"),
        (lambda x: np.random.default_rng(0).permuted(x.reshape(3, -1), axis=1).reshape(x.shape), "kept "),
    ],
)
def test_what_is_found_wrong(made: Callable[[np.ndarray], np.ndarray], fault: str | None) -> None:
    x = planes(data.astronaut())
    found = find_fault(x, made(x).astype(np.float32))
    assert found == fault if fault is None else found is not None and found.startswith(fault)


def test_flat_pictures_and_noise_are_not_suspected() -> None:
    noise = np.random.default_rng(0).normal(0, 0.5, (3, 512, 512)).clip(-1, 1).astype(np.float32)
    assert find_fault(noise, np.full_like(noise, noise.mean())) is None
    for level in (-1.0, 0.0, 1.0):
        flat = np.full((3, 512, 512), level, np.float32)
        assert find_fault(flat, flat) is None


@pytest.mark.parametrize("edge", [64, 128, 512])
def test_garbage_out_of_a_flat_tile_is_found(edge: int) -> None:
    flat = np.zeros((3, edge, edge), np.float32)
    coarse = np.random.default_rng(0).choice([-1.0, 1.0], (3, 4, 4))
    assert "made contrast of" in str(find_fault(flat, coarse.repeat(edge // 4, 1).repeat(edge // 4, 2)))


@pytest.mark.parametrize("edge", [64, 128, 512])
@pytest.mark.parametrize("radius", [0, 2, 8])
@given(seed=st.integers(0, 2**32 - 1), gain=st.floats(0.7, 1.4), shift=st.floats(-0.2, 0.2))
@settings(max_examples=10, deadline=None)
def test_no_honest_restoration_is_suspected(
    edge: int, radius: int, seed: int, gain: float, shift: float
) -> None:
    """Any part of a photograph, blurred or sharpened, with noise put in or taken out, and off by as much as
    a bad autoencoder is."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, 513 - edge, 2)
    clean = planes(data.astronaut())[:, top : top + edge, left : left + edge]
    noisy = (clean + rng.normal(0, 0.3, clean.shape)).clip(-1, 1).astype(np.float32)
    blurred = gaussian_filter(clean, (0, radius, radius))
    sharp = clean + (clean - gaussian_filter(clean, (0, 2, 2)))
    for x, y in ((noisy, clean), (clean, noisy), (clean, blurred), (blurred, sharp), (noisy, sharp)):
        # Around its mean: around 0, a gain shifts what is dark as well, by more than is allowed.
        middle = y.mean(axis=(1, 2), keepdims=True)
        assert find_fault(x, ((y - middle) * gain + middle + shift).astype(np.float32)) is None


@pytest.mark.parametrize("strength", [1.0, (0.3, 0.8), 0.0])
def test_no_tile_of_a_photograph_is_suspected_of_nano(strength: Any) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    with Upscaler("nano", device="cpu", threads=2, strength=strength) as upscaler:
        assert upscaler.upscale(data.coffee()[:100:2, :100:2], scale=4).shape == (200, 200, 3)


@pytest.mark.parametrize("made", ["noise", "checks", "colours", "black", "red"])
def test_no_tile_of_a_drawing_is_suspected_of_nano(made: str) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    rng, cells = np.random.default_rng(0), np.indices((64, 64)).sum(axis=0)[..., None]
    drawn = {
        "noise": rng.integers(0, 256, (64, 64, 3)),
        "checks": 255 * (cells // 3 % 2) * np.ones(3, int),
        "colours": 255 * rng.integers(0, 2, (8, 8, 3)).repeat(8, 0).repeat(8, 1),
        "black": np.zeros((64, 64, 3), int),
        "red": np.full((64, 64, 3), (255, 0, 0)),
    }
    with Upscaler("nano", device="cpu", threads=2) as upscaler:
        assert upscaler.upscale(drawn[made].astype(np.uint8), factors="4x2").shape == (512, 512, 3)


def nan(x: np.ndarray) -> np.ndarray:
    return np.full_like(x, np.nan)


def test_a_bad_tile_is_computed_again_in_fp32(upscaler_with: Callable[..., Any]) -> None:
    sound, _ = upscaler_with(FakeBackend(fp32=lambda x: x))
    expected = sound.upscale(photo())
    upscaler, notes = upscaler_with(FakeBackend(bf16=nan, fp32=lambda x: x))
    assert (upscaler.upscale(photo()) == expected).all()
    assert len(notes) == upscaler.plan(40, 40).tiles
    assert notes[0] == "a tile of stage 1 went wrong and is computed again in fp32"


def test_fp32_engines_are_loaded_only_when_a_tile_is_bad(upscaler_with: Callable[..., Any]) -> None:
    backend = FakeBackend(bf16=lambda x: x, fp32=nan)
    upscaler, notes = upscaler_with(backend)
    upscaler.upscale(photo())
    assert {precision for precision, _ in backend.loaded} == {"bf16"}
    assert notes == []


def test_a_tile_that_stays_bad_ends_the_picture(upscaler_with: Callable[..., Any]) -> None:
    upscaler, _ = upscaler_with(FakeBackend(fp16=nan, fp32=nan))
    with pytest.raises(NotFiniteError, match="made NaN or infinity in stage 1, tile row 1, column 1"):
        upscaler.upscale(photo())
    upscaler, _ = upscaler_with(FakeBackend(fp32=lambda x: np.zeros_like(x)))
    with pytest.raises(NotFiniteError, match="kept 0% of the picture's contrast in stage 1") as caught:
        upscaler.upscale(photo())
    assert caught.value.exit_code == 9


def test_what_keeps_a_bad_tile_from_a_second_try_does_not_hide_that_it_was_bad(
    upscaler_with: Callable[..., Any],
) -> None:
    def missing(_: np.ndarray) -> np.ndarray:
        raise DeviceError("there are no engines in fp32", hint="tudsr build --precision fp32")

    upscaler, _ = upscaler_with(FakeBackend(fp16=nan, fp32=missing))
    with pytest.raises(
        NotFiniteError,
        match=r"NaN or infinity in stage 1, .*, and fp32 cannot be tried: there are no engines",
    ) as caught:
        upscaler.upscale(photo())
    assert caught.value.exit_code == 9
    assert caught.value.hint == "tudsr build --precision fp32"
    upscaler, _ = upscaler_with(FakeBackend(fp16=nan, fp32=exhausted_at(64)))
    with pytest.raises(MemoryExhausted, match=r"12 bytes wanted \(the model made NaN or infinity in stage 1"):
        upscaler.upscale(photo())


def test_models_of_random_weights_may_be_let_through(upscaler_with: Callable[..., Any]) -> None:
    upscaler, _ = upscaler_with(FakeBackend(fp32=lambda x: np.zeros_like(x)), sanity=False)
    assert upscaler.upscale(photo()).shape == (320, 320, 3)


def exhausted_at(size: int) -> Callable[[np.ndarray], np.ndarray]:
    def run(x: np.ndarray) -> np.ndarray:
        if x.shape[-1] >= size:
            raise MemoryExhausted("out of memory while running unet: 12 bytes wanted")
        return x

    return run


def test_out_of_memory_starts_again_with_smaller_tiles(upscaler_with: Callable[..., Any]) -> None:
    backend = FakeBackend(fp32=exhausted_at(128))
    upscaler, notes = upscaler_with(backend)
    assert upscaler.upscale(photo()).shape == (320, 320, 3)
    assert notes == ["out of memory with tiles of 128 px; starting again with 64 px"]
    assert {stage.columns.tile for stage in upscaler.plan(40, 40).stages} == {64}
    upscaler.upscale(photo())
    assert len(notes) == 1
    assert backend.loaded.count(("fp32", 128)) == 4


def test_the_large_engines_are_gone_when_the_small_ones_are_loaded(
    upscaler_with: Callable[..., Any],
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    counts: list[int] = []

    class Counting(FakeBackend):
        def load(self, graph: Path, variant: Any, target: Any) -> Any:
            counts.append(sum(tile != variant.tile for tile in (one.tile for one in alive)))
            engine = super().load(graph, variant, target)
            engine.tile = variant.tile
            alive.add(engine)
            return engine

    gc.disable()
    try:
        upscaler_with(Counting(fp32=exhausted_at(128)))[0].upscale(photo())
    finally:
        gc.enable()
    assert len(counts) == 8
    assert sum(counts) == 0


def test_out_of_memory_with_the_smallest_tile_is_the_end(upscaler_with: Callable[..., Any]) -> None:
    upscaler, notes = upscaler_with(FakeBackend(fp32=exhausted_at(64)))
    with pytest.raises(MemoryExhausted, match="12 bytes wanted, with tiles of 64 px") as caught:
        upscaler.upscale(photo())
    assert caught.value.exit_code == 7
    assert len(notes) == 1


def test_the_command_starts_the_picture_again(
    bundle: Bundle, tmp_path: Path, install_backend: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    import cli

    backend = FakeBackend(fp32=exhausted_at(128))
    install_backend(backend)
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    words = ["upscale", str(tmp_path / "photo.png"), "--bundle", str(bundle.folder), "--overlap", "24"]
    cli.app(words, standalone_mode=False)
    assert "starting again with 64 px" in capsys.readouterr().err
    with Image.open(tmp_path / "photo_x8.png") as result:
        assert result.size == (320, 320)


def test_no_thread_is_left_behind(upscaler_with: Callable[..., Any]) -> None:
    before = {*threading.enumerate()}
    upscaler, _ = upscaler_with(FakeBackend(fp32=nan))
    for _ in range(3):
        with pytest.raises(NotFiniteError):
            upscaler.upscale(photo())
    rows = upscaler_with(FakeBackend(fp32=lambda x: x))[0].upscale_rows(photo())
    next(rows)
    rows.close()
    # One of an earlier test may end meanwhile.
    assert {*threading.enumerate()} <= before


@pytest.mark.parametrize(
    ("text", "pair"), [("1", (1, 1)), ("0.5", (0.5, 0.5)), ("1.0,0.6", (1, 0.6)), ("0,0", (0, 0))]
)
def test_strength_is_one_number_or_two(text: str, pair: tuple[float, float]) -> None:
    assert parse_strength(text) == pair


@pytest.mark.parametrize("text", ["", "a", "1,1,1", "1;0"])
def test_other_strengths_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="strength must be"):
        parse_strength(text)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan"), (1.0, 2.0)])
def test_strength_out_of_range_is_refused(bundle: Bundle, strength: Any) -> None:
    with pytest.raises(UsageError, match="strength must be a number from 0 to 1"):
        Upscaler(bundle, overlap=24, strength=strength)
