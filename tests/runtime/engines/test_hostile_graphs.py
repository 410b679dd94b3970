"""Graphs of `hostile.py` in a bundle whose hashes are right: what the command ends with and shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from tests.runtime.conftest import MakeBundle, Tudsr
from tests.runtime.engines.hostile import FOREIGN, lies_about_its_output, model, node, plant
from tudsr_runtime import Upscaler
from tudsr_runtime.errors import BundleError

LATENT = (1, 48, 16, 16)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(data.astronaut()[100:120, 150:180]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_graph_ends_in_its_exit_code_and_one_line(
    make_bundle: MakeBundle, tudsr: Tudsr, photo: Path, name: str, backend: str
) -> None:
    pytest.importorskip(backend, reason=f"needs {backend}")
    foreign, bundle = FOREIGN[name], make_bundle(photo.parent / "b", tile=64)
    plant(bundle, "unet_stage1", foreign.make(LATENT))
    result = tudsr(
        *("upscale", photo, "--scale", "2", "--overlap", "24", "-q", "--backend", backend),
        *("--bundle", bundle, "-o", photo.with_name("large.png")),
    )
    own = foreign.openvino if backend == "openvino" else None
    code = foreign.exit_code if own is None else own
    assert result.code == code, result.err
    assert photo.with_name("large.png").exists() == (code == 0)
    # Nothing of the libraries' own, and of the file's bytes none that a terminal would obey.
    told, *tried = result.err.splitlines() or [""]
    assert len(tried) <= 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", result.err)
    if code:
        assert told.startswith("error: ")
        assert all(line.startswith("Try: ") for line in tried)
    if code == 5:
        assert re.search(foreign.words, told)
        assert ".cpp:" not in told
        assert "onnxruntime_src" not in told


def test_a_decoder_that_lies_about_its_output_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """Where no other graph would complain of it."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    bundle = make_bundle(tmp_path / "b", tile=64)
    steps = [node("DepthToSpace", "x", blocksize=4)]
    honest = model(steps, LATENT, output=(1, 3, 64, 64))
    narrow = model([], (1, 3, 64, 64))
    narrow.ParseFromString(lies_about_its_output((1, 3, 64, 64)))
    for one in narrow.graph.node:
        one.input[:] = ["image" if name == "x" else name for name in one.input]
    honest.graph.node[0].output[0] = "image"
    honest.graph.node.extend(narrow.graph.node)
    honest.graph.initializer.extend(narrow.graph.initializer)
    plant(bundle, "vae_decoder", honest.SerializeToString())
    with (
        Upscaler(bundle, "onnxruntime", "cpu", threads=1, overlap=24) as upscaler,
        pytest.raises(BundleError, match=r"vae_decoder gives \(1, 3, 64, 4\), not the \(1, 3, 64, 64\)"),
    ):
        upscaler.upscale(np.zeros((8, 8, 3), np.uint8), 2)


def test_what_an_engine_library_shows_can_be_seen(
    make_bundle: MakeBundle, tudsr: Tudsr, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TUDSR_DEBUG=1: what is hidden is there, and would be on the terminal."""
    pytest.importorskip("openvino", reason="needs openvino")
    bundle = make_bundle(photo.parent / "b", tile=64)
    plant(bundle, "unet_stage1", FOREIGN["web page"].make(LATENT))
    words = ("upscale", photo, "--bundle", bundle, "--overlap", "24", "--backend", "openvino")
    hidden = tudsr(*words).err
    monkeypatch.setenv("TUDSR_DEBUG", "1")
    assert "text_format" in tudsr(*words).err
    assert "text_format" not in hidden


def test_too_many_threads_are_not_started(
    make_bundle: MakeBundle, tudsr: Tudsr, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tudsr_runtime.engines import stages

    asked: list[int | None] = []
    real = stages.open_backend

    class Spy:
        def __init__(self, name: str) -> None:
            self._backend = real(name)

        def __getattr__(self, name: str) -> Callable[..., object]:
            found = getattr(self._backend, name)
            if name != "load":
                return found

            def load(graph: object, variant: object, target: stages.Target) -> object:
                asked.append(target.threads)
                return found(graph, variant, target)

            return load

    monkeypatch.setattr(stages, "open_backend", Spy)
    monkeypatch.setattr("tudsr_runtime.machine.processors", lambda: 2)
    bundle = make_bundle(photo.parent / "b", tile=64)
    words = ("upscale", photo, "--bundle", bundle, "--overlap", "24", "--scale", "2")
    result = tudsr(*words, "--threads", "1000000")
    assert result.code == 0, result.err
    assert set(asked) == {2}
    assert "note: instead of 1000000 threads 2 will run, one for each processor" in result.err
    assert "instead" not in tudsr(*words, "--threads", "2", "--overwrite").err
