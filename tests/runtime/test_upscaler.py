from __future__ import annotations

import importlib.metadata
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import tudsr_runtime
from tudsr_runtime import Upscaler
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.engines.backend import Choice, Precision
from tudsr_runtime.engines.select import BY_NAME, PREFERENCE
from tudsr_runtime.errors import BundleError, InputError, MemoryExhausted, NotFiniteError, UsageError
from tudsr_runtime.tiling.color import COLOR_METHODS
from tudsr_runtime.tiling.resample import resize, upsample

MakeBundle = Callable[..., Path]


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path) -> Bundle:
    return open_bundle(make_bundle(tmp_path / "b", tile=64))


@pytest.fixture
def fake_engines(install_backend: Callable[..., None], fake_engine: type) -> dict[str, Any]:
    """Engines that return their input in place of a back end's; by component, as they are loaded."""
    made: dict[str, Any] = {}

    def load(graph: Path, *_: object) -> Any:
        return made.setdefault(graph.parent.name, fake_engine())

    class FakeBackend:
        def probe(self, device: str) -> None:
            assert device == "cuda"

        def precision(self, *_: object) -> Precision:
            return Precision("fp32", "it is fake")

        def chain(self, _: object) -> None:
            return None

    FakeBackend.load = staticmethod(load)  # type: ignore[attr-defined]
    install_backend(FakeBackend())
    return made


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).random((height, width, 3), dtype=np.float32)


def planar(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 0, 1)


@pytest.mark.parametrize("threads", [1, None])
def test_identity_bundle_upscales_bilinearly(identity_bundle: Path, threads: int | None) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    with Upscaler(identity_bundle, device="cpu", threads=threads, color="none") as upscaler:
        x = image(30, 40)
        y = upscaler.upscale(x, scale=8)
    assert y.dtype == np.float32
    assert y.shape == (240, 320, 3)
    assert y.flags.c_contiguous
    assert np.abs(planar(y) - upsample(upsample(planar(x), 4), 2)).max() <= 1e-6


@pytest.mark.usefixtures("fake_engines")
@pytest.mark.parametrize(
    ("scale", "shape"), [(1, (13, 21, 3)), (3, (39, 63, 3)), (5.37, (70, 113, 3)), (18, (234, 378, 3))]
)
@pytest.mark.parametrize("color", COLOR_METHODS)
def test_output_size_is_exact(bundle: Bundle, scale: float, shape: tuple[int, ...], color: str) -> None:
    upscaler = Upscaler(bundle, overlap=24, color=color)
    y = upscaler.upscale(image(13, 21), scale)
    assert y.shape == shape
    assert 0 <= y.min() < y.max() <= 1


@pytest.mark.usefixtures("fake_engines")
def test_final_resize_is_the_antialiased_one(bundle: Bundle) -> None:
    x = image(13, 21)
    y = Upscaler(bundle, overlap=24, color="none").upscale(x, 3)
    expected = np.clip(resize(upsample(upsample(planar(x), 2), 2), 39, 63), 0, 1)
    assert np.abs(planar(y) - expected).max() <= 1e-5


@pytest.mark.usefixtures("fake_engines")
@pytest.mark.parametrize("color", COLOR_METHODS)
@pytest.mark.parametrize("value", [0, 0.25, 1])
def test_flat_pictures_stay_as_they_are(bundle: Bundle, value: float, color: str) -> None:
    y = Upscaler(bundle, overlap=24, color=color).upscale(np.full((9, 30, 3), value, np.float32), 6)
    assert np.abs(y - value).max() < 1 / 255


def test_colour_matching_removes_what_the_model_adds(make_bundle: MakeBundle, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    folder = make_bundle(tmp_path / "b", unet="offset", tile=64)
    x = np.full((10, 12, 3), 0.25, np.float32)
    with Upscaler(folder, device="cpu", threads=1, overlap=24) as upscaler:
        assert np.abs(upscaler.upscale(x, 8) - 0.25).max() < 1 / 255
    with Upscaler(folder, device="cpu", threads=1, overlap=24, color="none") as upscaler:
        assert np.abs(upscaler.upscale(x, 8) - 0.5).max() < 1 / 255


@pytest.mark.parametrize(("unet", "dtype"), [("nan", "float32"), ("overflow", "float16")])
def test_model_that_overflows_is_an_error(
    make_bundle: MakeBundle, tmp_path: Path, unet: str, dtype: str
) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    folder = make_bundle(tmp_path / "b", unet=unet, dtype=dtype, stages=1, tile=64)
    upscaler = Upscaler(folder, device="cpu", threads=1, overlap=24)
    with upscaler, pytest.raises(NotFiniteError, match="stage 1, tile row 1, column 1"):
        upscaler.upscale(np.ones((4, 4, 3), np.float32), 2)


@pytest.mark.usefixtures("fake_engines")
def test_rows_are_the_picture(bundle: Bundle) -> None:
    upscaler, x = Upscaler(bundle, overlap=24), image(40, 30)
    bands = list(upscaler.upscale_rows(x, 5))
    assert len(bands) > 1
    assert (np.concatenate(bands) == upscaler.upscale(x, 5)).all()


@pytest.mark.usefixtures("fake_engines")
@pytest.mark.parametrize("color", COLOR_METHODS)
@pytest.mark.parametrize("scale", [3, 4, 5.4])
def test_columns_are_the_picture(bundle: Bundle, color: str, scale: float) -> None:
    upscaler, x = Upscaler(bundle, overlap=24, color=color), image(30, 90)
    columns = np.concatenate(list(upscaler.upscale_rows(x, scale, by_columns=True)))
    rows = np.concatenate(list(upscaler.upscale_rows(x, scale)))
    assert upscaler.plan(90, 30, scale).by_columns(0)
    assert (upscaler.upscale(x, scale) == columns.swapaxes(0, 1)).all()
    assert np.abs(columns.swapaxes(0, 1) - rows).max() <= 1e-5


@pytest.mark.usefixtures("fake_engines")
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_wide_picture_is_a_tall_one_that_is_turned(bundle: Bundle, channels: int, dtype: type) -> None:
    """The model is the identity, so that nothing else tells one side from the other."""
    x = (np.random.default_rng(0).random((20, 60, channels)) * np.iinfo(dtype).max).astype(dtype)
    upscaler = Upscaler(bundle, overlap=24)
    wide, tall = upscaler.upscale(x, 3), upscaler.upscale(np.ascontiguousarray(x.swapaxes(0, 1)), 3)
    assert wide.shape == (60, 180, channels)
    difference = wide.astype(int) - tall.swapaxes(0, 1)
    assert np.abs(difference).max() <= np.iinfo(dtype).max / 255


def test_only_the_stages_that_run_are_loaded(bundle: Bundle, fake_engines: dict[str, Any]) -> None:
    with Upscaler(bundle, overlap=24) as upscaler:
        upscaler.plan(100, 100)
        assert fake_engines == {}
        upscaler.upscale(image(8, 8), factors="-x4", scale=None)
        assert set(fake_engines) == {"vae_encoder", "unet_stage2", "vae_decoder"}
        upscaler.upscale(image(8, 8))
        assert set(fake_engines) == {"vae_encoder", "unet_stage1", "unet_stage2", "vae_decoder"}
    assert all(engine.closed for engine in fake_engines.values())


def test_progress_matches_the_plan(bundle: Bundle, fake_engines: dict[str, Any]) -> None:
    upscaler, seen = Upscaler(bundle, overlap=24), []
    upscaler.upscale(image(20, 10), 8, progress=lambda *counts: seen.append(counts))
    total = upscaler.plan(10, 20, 8).tiles
    assert seen == [(done, total) for done in range(1, total + 1)]
    assert fake_engines["vae_encoder"].calls == total


@pytest.mark.usefixtures("fake_engines")
def test_threads_share_one_upscaler(bundle: Bundle) -> None:
    upscaler = Upscaler(bundle, overlap=24)
    pictures = [image(10 + i, 12) for i in range(4)]
    expected = [upscaler.upscale(x, 8) for x in pictures]
    results: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        results[i] = upscaler.upscale(pictures[i], 8)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all((results[i] == expected[i]).all() for i in range(4))


@pytest.mark.usefixtures("fake_engines")
def test_input_is_not_changed(bundle: Bundle) -> None:
    x = image(8, 8)
    x.flags.writeable = False
    before = x.copy()
    Upscaler(bundle, overlap=24).upscale(x)
    assert (x == before).all()


@pytest.mark.usefixtures("fake_engines")
@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3)), "not float64"),
        ([[0, 1], [2, 3]], "an array or a Pillow image, not list"),
        (np.zeros((4,), np.float32), r"not float32 \(4,\)"),
        (np.zeros((4, 4, 5), np.float32), r"\(4, 4, 5\)"),
        (np.zeros((0, 4, 3), np.float32), r"\(0, 4, 3\)"),
        (np.full((4, 4, 3), 255, np.float32), "this one spans 255 to 255"),
        (np.full((4, 4, 3), np.nan, np.float32), "spans nan to nan"),
    ],
)
def test_array_that_is_no_picture_is_refused(bundle: Bundle, picture: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Upscaler(bundle, overlap=24).upscale(picture)


@pytest.mark.usefixtures("fake_engines")
@pytest.mark.parametrize("arguments", [{"overlap": 16}, {"overlap": 33}, {"color": "magic"}, {"threads": 0}])
def test_senseless_arguments_are_refused_at_once(bundle: Bundle, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Upscaler(bundle, **{"overlap": 24, **arguments})


def test_missing_bundle_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder"):
        Upscaler(tmp_path / "none")


@pytest.mark.usefixtures("fake_engines")
def test_result_too_large_for_memory_is_said_with_its_size(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    upscaler = Upscaler(bundle, overlap=24)

    def refuse(*_: object) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr("tudsr_runtime.pictures.in_memory.np.empty", refuse)
    with pytest.raises(MemoryExhausted, match=r"result of 8000x16000 px \(1\.5 GB in float32\)"):
        upscaler.upscale(np.zeros((2000, 1000, 3), np.float32))


@pytest.mark.usefixtures("fake_engines")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 2), (9, 7, 3), (9, 7, 4)])
def test_arrays_come_back_as_they_went_in(bundle: Bundle, dtype: type, shape: tuple[int, ...]) -> None:
    top = 1 if dtype == np.float32 else np.iinfo(dtype).max
    picture = (np.full(shape, 0.75) * top).astype(dtype)
    result = Upscaler(bundle, overlap=24).upscale(picture, 2.5)
    assert result.dtype == dtype
    assert result.shape == (23, 18, *shape[2:])
    assert np.abs(result.astype(float) - picture.flat[0]).max() <= top / 255


@pytest.mark.usefixtures("fake_engines")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_pillow_images_come_back_as_such(bundle: Bundle, mode: str) -> None:
    source = Image.new(mode, (7, 9))
    source.info["icc_profile"] = b"profile"
    result = Upscaler(bundle, overlap=24).upscale(source, scale=3)
    assert result.size == (21, 27)
    assert result.mode == {"1": "L", "P": "RGB", "CMYK": "RGB"}.get(mode, mode)
    assert result.info.get("icc_profile") == (None if mode == "CMYK" else b"profile")


@pytest.mark.usefixtures("fake_engines")
def test_alpha_is_kept_apart_from_colour(bundle: Bundle) -> None:
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[2:6, 2:6] = 255
    result = Upscaler(bundle, overlap=24).upscale(picture, 4)
    assert result[..., :3].min() == 255
    assert (result[..., 3].min(), result[..., 3].max()) == (0, 255)


@pytest.mark.usefixtures("fake_engines")
@pytest.mark.parametrize("size", [(13, 9), (14, 9), (40, 27), (100, 72), (400, 288)])
def test_any_size_is_met_exactly(bundle: Bundle, size: tuple[int, int]) -> None:
    upscaler = Upscaler(bundle, overlap=24)
    assert upscaler.upscale(image(9, 13), size=size).shape == (size[1], size[0], 3)
    with pytest.raises(UsageError, match=r"13 x 9 px cannot become 12 x 9"):
        upscaler.upscale(image(9, 13), size=(12, 9))


@pytest.mark.usefixtures("fake_engines")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(height=st.integers(1, 40), width=st.integers(1, 40), scale=st.floats(1, 32))
def test_any_picture_down_to_one_pixel_is_enlarged_without_seams(
    bundle: Bundle, height: int, width: int, scale: float
) -> None:
    assume(height * width * scale**2 < 90_000)
    x, upscaler = image(height, width), Upscaler(bundle, overlap=24, color="none")
    plan = upscaler.plan(width, height, scale)
    expected = upsample(upsample(planar(x), plan.factors[0]), plan.factors[1])
    expected = np.clip(resize(expected, plan.output_height, plan.output_width), 0, 1)
    assert (plan.output_width, plan.output_height) == (int(width * scale + 0.5), int(height * scale + 0.5))
    assert np.abs(planar(upscaler.upscale(x, scale)) - expected).max() <= 1e-5


def test_choice_is_kept_with_its_reason(bundle: Bundle, fake_engines: dict[str, Any]) -> None:
    built = "; ".join(f"no engines for {name} are built" for name, _ in BY_NAME)
    assert Upscaler(bundle, overlap=24).choice == Choice(
        *PREFERENCE[0], built, Precision("fp32", "it is fake")
    )
    assert fake_engines == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scale": "4"}, "scale must be 1 to 32, not '4'"),
        ({"scale": True}, "scale must be 1 to 32, not True"),
        ({"scale": 4, "size": (64, 64)}, r"scale 4 and size \(64, 64\) both say how large"),
        ({"size": "64x64"}, "size must be .width, height. in whole px, not '64x64'"),
        ({"size": (64.5, 64)}, "in whole px"),
        ({"size": 64}, "in whole px, not 64"),
        ({"factors": 8}, "factors must be two whole numbers"),
    ],
)
def test_what_is_no_size_is_said(bundle: Bundle, given: dict[str, Any], said: str) -> None:
    with Upscaler(bundle, overlap=32) as upscaler, pytest.raises(UsageError, match=said):
        upscaler.upscale(image(8, 8), **given)


@pytest.mark.parametrize(
    "strength", ["1", (1, 2), (1, 0.5, 0.2), float("nan"), True, None, [], {"stage1": 1}, (0.5, "1")]
)
def test_what_is_no_strength_is_said(bundle: Bundle, strength: Any) -> None:
    with pytest.raises(UsageError, match="strength must be a number from 0 to 1, or two such numbers"):
        Upscaler(bundle, strength=strength)


@pytest.mark.parametrize(
    "given", [{"overlap": "x"}, {"overlap": 64.0}, {"bundle": None}, {"bundle": 3}, {"device": 3}]
)
def test_what_is_of_no_kind_that_can_be_meant_is_said(bundle: Bundle, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(given))} must be"):
        Upscaler(**({"bundle": bundle} | given))


def test_a_plan_is_of_whole_numbers(bundle: Bundle) -> None:
    upscaler = Upscaler(bundle, overlap=17)
    with pytest.raises(UsageError, match="width and height must be whole"):
        upscaler.plan("5", 4, 2)  # type: ignore[arg-type]
    assert upscaler.plan(np.int64(5), np.int64(4), 2).output_width == 10  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["cut", "changed"])
def test_a_pillow_image_of_a_damaged_file_is_an_input_error(bundle: Bundle, content: str) -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(file, "PNG", compress_level=0)
    whole = bytearray(file.getvalue())
    damaged = whole[:200] if content == "cut" else whole[:60] + b"\xff" * 40 + whole[100:]
    with pytest.raises(InputError, match="Pillow image cannot be decoded"):
        Upscaler(bundle, overlap=17).upscale(Image.open(io.BytesIO(bytes(damaged))), scale=2)


def test_a_list_of_strengths_is_a_pair(bundle: Bundle) -> None:
    assert Upscaler(bundle, strength=[1, 0.5], overlap=32).settings["strength"] == (1.0, 0.5)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_what_is_no_number_of_threads_is_said(bundle: Bundle, threads: Any) -> None:
    with pytest.raises(UsageError, match="threads must be a whole number"):
        Upscaler(bundle, threads=threads)


@pytest.mark.parametrize(
    ("picture", "hint"),
    [
        (np.zeros((8, 8, 3)), "image.astype(numpy.float32), in [0, 1]"),
        (np.zeros((3, 8, 8), np.uint8), "image.transpose(1, 2, 0), channels last"),
        (np.zeros((1, 8, 8, 3), np.uint8), "image[0], one picture at a time"),
        (np.zeros((8, 8), bool), "image.astype(numpy.uint8), in 0 to 255"),
        (np.zeros((8, 8), complex), None),
        (np.zeros((0, 8, 3), np.uint8), None),
        ("photo.png", "PIL.Image.open(...) of the file"),
    ],
)
def test_what_is_no_picture_is_said_with_what_would_make_one_of_it(
    bundle: Bundle, picture: Any, hint: str | None
) -> None:
    with (
        Upscaler(bundle, overlap=32) as upscaler,
        pytest.raises(InputError, match="a picture must be") as caught,
    ):
        upscaler.upscale(picture)
    assert caught.value.hint == hint


@pytest.mark.parametrize("change", [np.flipud, np.asfortranarray, lambda x: np.repeat(x, 2, 0)[::2]])
def test_the_layout_in_memory_does_not_matter(bundle: Bundle, change: Callable[..., Any]) -> None:
    picture = (image(8, 8) * 255).astype(np.uint8)
    changed = change(picture)
    changed.flags.writeable = False
    with Upscaler(bundle, sanity=False, overlap=32) as upscaler:
        expected = upscaler.upscale(np.ascontiguousarray(changed), 2)
        assert np.array_equal(upscaler.upscale(changed, 2), expected)


def test_a_plan_and_an_upscaler_show_what_they_are(bundle: Bundle) -> None:
    with Upscaler(bundle, overlap=32) as upscaler:
        shown = repr(upscaler)
        assert shown.startswith(f"<Upscaler {bundle.manifest.name}: ")
        assert upscaler.choice.backend in shown
        plan = repr(upscaler.plan(13, 9))
    assert plan.startswith("<Plan 13x9 -> 104x72 px, 4x2, ")


def test_public_names_are_sorted_and_there() -> None:
    assert sorted(tudsr_runtime.__all__) == tudsr_runtime.__all__ == dir(tudsr_runtime)
    classes = [name for name in tudsr_runtime.__all__ if name != "__version__"]
    assert all(getattr(tudsr_runtime, name).__name__ == name for name in classes)
    assert tudsr_runtime.__version__ == importlib.metadata.version("tudsr")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = tudsr_runtime.nothing


def test_importing_loads_no_engine_library_and_no_training_library() -> None:
    lazy = "import sys, tudsr_runtime; assert 'numpy' not in sys.modules; tudsr_runtime.Upscaler;"
    heavy = "print({'torch', 'onnx', 'onnxruntime', 'diffusers', 'typer', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", lazy + heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.usefixtures("fake_engines")
def test_the_usual_overlap_is_at_most_half_a_tile(bundle: Bundle) -> None:
    """Tiles of 64 px have no room for 128."""
    with Upscaler(bundle) as upscaler:
        assert upscaler.settings["overlap"] == 32
        assert upscaler.plan(100, 100, 2).stages[0].columns.tile == 64


def test_another_look_on_the_same_engines_is_that_of_an_upscaler_of_its_own(
    bundle: Bundle, fake_engines: dict[str, Any]
) -> None:
    looks = {"strength": (0.5, 0.0), "color": "adain", "overlap": 24, "wrap": "x"}
    with Upscaler(bundle, device="cuda", overlap=32) as upscaler:
        fake = fake_engines
        x = image(20, 30)
        plain = upscaler.upscale(x, 8)
        loaded = dict(fake)
        fake["unet_stage1"].function = lambda z: z + np.float32(0.3)
        other = upscaler.with_look(**looks)
        changed = other.upscale(x, 8)
        assert fake == loaded
        assert upscaler.with_look().settings == upscaler.settings
        assert other.with_look().settings == other.settings
        assert "wrap" not in other.with_look(wrap="none").settings
    with Upscaler(bundle, device="cuda", **looks) as own:
        assert np.array_equal(own.upscale(x, 8), changed)
        assert own.settings == other.settings
        assert own.color == other.color
        loaded_again = pickle.loads(pickle.dumps(other))
        assert (loaded_again.settings, loaded_again.wrap) == (other.settings, "x")
    assert not np.array_equal(plain, changed)


def test_another_look_has_the_limits_of_the_only_size_of_tiles(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    folder = make_bundle(tmp_path / "sizes", tile=128, smaller=(64,))
    with Upscaler(folder, device="cpu", overlap=24, tile=64) as upscaler:
        assert upscaler.with_look().settings == upscaler.settings
        assert upscaler.with_look(overlap=32).settings == {**upscaler.settings, "overlap": 32}
        with pytest.raises(UsageError, match="overlap"):
            upscaler.with_look(overlap=33)


@pytest.mark.usefixtures("fake_engines")
@pytest.mark.parametrize("look", [{"strength": 2}, {"color": "nice"}, {"overlap": 9}, {"wrap": "y"}])
def test_another_look_is_checked_like_the_first(bundle: Bundle, look: dict[str, Any]) -> None:
    with Upscaler(bundle, device="cuda", overlap=24) as upscaler, pytest.raises(UsageError):
        upscaler.with_look(**look)
