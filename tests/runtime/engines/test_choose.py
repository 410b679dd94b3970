"""`auto` takes no arithmetic that the bundle's own golden tile fails, and measures once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.runtime.conftest import FakeEngine, add_golden
from tudsr_runtime.bundle import Bundle, open_bundle
from tudsr_runtime.bundle_command import bundle_verify
from tudsr_runtime.engines import choose as chooser
from tudsr_runtime.engines.backend import Precision, Target
from tudsr_runtime.engines.choose import Asked, choose
from tudsr_runtime.errors import MemoryExhausted, NotFiniteError
from tudsr_runtime.manifest import Variant
from tudsr_runtime.upscaler import Upscaler

MakeBundle = Callable[..., Path]
TILE = 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUDSR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bundle(make_bundle: MakeBundle, tmp_path: Path) -> Bundle:
    """A bundle that adds 0.25 in each stage, with its golden tile."""
    return open_bundle(add_golden(make_bundle(tmp_path / "b", unet="offset", tile=TILE), TILE))


class Rounding:
    """A back end whose bf16 is off by `error` in each UNet; anything else is exact."""

    def __init__(self, error: float) -> None:
        self.error = error
        self.runs: list[str] = []

    def probe(self, _: str) -> None:
        return None

    def precision(self, _: str, asked: str, _offered: tuple[str, ...]) -> Precision:
        return (
            Precision("bf16", "the processor has bf16") if asked == "auto" else Precision(asked, "as asked")
        )

    def load(self, graph: Path, _: Variant, target: Target) -> Any:
        name = graph.parent.name
        if name == "vae_encoder":
            return FakeEngine(_to_latents)
        if name == "vae_decoder":
            return FakeEngine(_from_latents)
        self.runs.append(target.precision)
        if self.error < 0:
            raise MemoryExhausted("out of memory while loading")
        return FakeEngine(lambda z: z + np.float32(0.25 + self.error * (target.precision == "bf16")))

    def chain(self, _: object) -> None:
        return None


def _to_latents(x: np.ndarray) -> np.ndarray:
    cells = x.reshape(1, 3, TILE // 4, 4, TILE // 4, 4).transpose(0, 3, 5, 1, 2, 4)
    return np.ascontiguousarray(cells).reshape(1, 48, TILE // 4, TILE // 4)


def _from_latents(z: np.ndarray) -> np.ndarray:
    cells = z.reshape(1, 4, 4, 3, TILE // 4, TILE // 4).transpose(0, 3, 4, 1, 5, 2)
    return np.ascontiguousarray(cells).reshape(1, 3, TILE, TILE)


def test_an_arithmetic_that_the_golden_tile_fails_is_not_taken(
    bundle: Bundle, install_backend: Callable[..., None]
) -> None:
    backend = Rounding(0.05)
    install_backend(backend)
    notes: list[str] = []
    choice, _ = choose(bundle, Asked(), notify=notes.append)
    assert choice.precision is not None
    assert choice.precision.name == "fp32"
    assert "bf16" in choice.precision.reason
    assert "dB on the golden tile, below 40" in choice.precision.reason
    assert len(notes) == 1
    with Upscaler(bundle, overlap=24, notify=notes.append) as upscaler:
        assert upscaler.choice.precision == choice.precision
    assert len(notes) == 1, "the answer is kept"
    assert choose(bundle, Asked(precision="bf16"))[0].precision == Precision("bf16", "as asked")


def test_an_arithmetic_that_it_passes_is_taken_and_measured_again_for_another_library(
    bundle: Bundle, install_backend: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Rounding(0.0005)
    install_backend(backend)
    for version, processor in (("1", "a"), ("1", "a"), ("2", "a"), ("2", "b"), ("2", "b")):
        monkeypatch.setattr(chooser, "engine_libraries", lambda version=version: {"x": version})
        monkeypatch.setattr(chooser, "processor", lambda _, name=processor: name)
        choice, _ = choose(bundle, Asked())
        assert choice.precision == Precision("bf16", "the processor has bf16")
    assert backend.runs == ["bf16"] * 2 * 3


def test_verify_asks_the_golden_tile_anew_and_passes_with_what_auto_takes(
    bundle: Bundle, install_backend: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    backend = Rounding(0.0)
    install_backend(backend)
    assert choose(bundle, Asked())[0].precision == Precision("bf16", "the processor has bf16")
    backend.error = 0.05
    bundle_verify(str(bundle.folder))
    assert "fp32 (bf16" in capsys.readouterr().err
    assert (choose(bundle, Asked())[0].precision or Precision("", "")).name == "fp32"
    with pytest.raises(NotFiniteError, match="below 40 dB"):
        bundle_verify(str(bundle.folder), precision="bf16")


def test_short_memory_says_nothing_about_an_arithmetic(
    bundle: Bundle, install_backend: Callable[..., None], cache: Path
) -> None:
    install_backend(Rounding(-1))
    choice, _ = choose(bundle, Asked())
    assert choice.precision == Precision("bf16", "the processor has bf16")
    assert not (cache / "golden").exists()


def test_an_answer_that_cannot_be_read_is_measured_again(
    bundle: Bundle, install_backend: Callable[..., None], cache: Path
) -> None:
    backend = Rounding(0.0)
    install_backend(backend)
    choose(bundle, Asked())
    (kept,) = (cache / "golden").iterdir()
    kept.write_text("[]")
    choose(bundle, Asked())
    assert len(backend.runs) == 4
    assert json.loads(kept.read_text()) != []


def test_a_bundle_without_a_golden_tile_has_nothing_to_fail(
    make_bundle: MakeBundle, tmp_path: Path, install_backend: Callable[..., None]
) -> None:
    backend = Rounding(0.05)
    install_backend(backend)
    plain = open_bundle(make_bundle(tmp_path / "plain", tile=TILE))
    assert (choose(plain, Asked())[0].precision or SimpleNamespace(name="")).name == "bf16"
    assert backend.runs == []
