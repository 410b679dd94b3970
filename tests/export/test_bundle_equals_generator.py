"""The exported bundle, run in ONNX Runtime, against an independent pipeline; and what the files look like."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from tests.export import reference
from tests.export.conftest import FACTORS, TILE, TIMESTEPS, Source, export, make_source, make_stable_diffusion
from tudsr_export import onnx_export
from tudsr_runtime.bundle import Bundle, open_bundle

KINDS = ("nano", "stable_diffusion", "features")


def picture(seed: int = 5) -> torch.Tensor:
    """Smooth, with edges, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(-0.9, 0.9, (1, 3, 8, 8)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, size=(TILE, TILE), mode="bilinear")


def run_bundle(bundle: Bundle, image: torch.Tensor) -> torch.Tensor:
    """Every stage of the bundle on one tile, by nothing but what its manifest says."""
    x = image.numpy()
    for stage in bundle.manifest.stages:
        for component in (stage.encoder, stage.unet, stage.decoder):
            variant = bundle.variant(component)
            session = onnxruntime.InferenceSession(bundle.path(variant), providers=["CPUExecutionProvider"])
            source, target = variant.inputs[0], variant.outputs[0]
            (x,) = session.run([target.name], {source.name: x.astype(source.dtype)})
            assert x.shape == target.shape
            assert str(x.dtype) == target.dtype
        x = x.astype(np.float32).clip(-1, 1)
    return torch.from_numpy(x)


def steps(source: Source) -> list[tuple[Path, int]]:
    return [(source.stage1, TIMESTEPS[1]), (source.stage2, TIMESTEPS[2])]


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_bundle_restores_like_an_independent_pipeline(kind, sources, bundles):
    bundle = open_bundle(bundles(kind, "fp32"))
    expected = reference.restore(sources[kind].base, steps(sources[kind]), picture())
    torch.testing.assert_close(run_bundle(bundle, picture()), expected, rtol=0, atol=2e-4)
    assert (expected - picture()).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_each_fp32_graph_is_its_part_of_the_generator(kind, sources, bundles):
    source, bundle = sources[kind], open_bundle(bundles(kind, "fp32"))

    def run(component, values):
        session = onnxruntime.InferenceSession(bundle.path(bundle.variant(component)))
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: values.numpy()})[0])

    with torch.no_grad():
        z_L = reference.to_latent(source.base, picture())
        torch.testing.assert_close(run("vae_encoder", picture()), z_L, rtol=0, atol=1e-4)
        for adapter, t in steps(source):
            component = "unet_stage1" if adapter == source.stage1 else "unet_stage2"
            z_H = reference.denoise(source.base, adapter, z_L, t)
            torch.testing.assert_close(run(component, z_L), z_H, rtol=0, atol=1e-4)
        expected = reference.to_image(source.base, z_H)
        torch.testing.assert_close(run("vae_decoder", z_H), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["nano", pytest.param("features", marks=pytest.mark.thorough)])
def test_an_fp16_bundle_of_pixels_is_within_a_grey_level(kind, sources, bundles):
    bundle = open_bundle(bundles(kind, "fp16"))
    expected = reference.restore(sources[kind].base, steps(sources[kind]), picture())
    torch.testing.assert_close(run_bundle(bundle, picture()), expected, rtol=0, atol=2 / 255)


@pytest.mark.thorough
def test_fp16_graphs_of_stable_diffusion_hold_no_float32(bundles):
    bundle = open_bundle(bundles("stable_diffusion", "fp16"))
    assert bundle.manifest.precision == "fp16"
    for component in bundle.manifest.components:
        model = onnx.load(bundle.path(bundle.variant(component)))
        floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.dims]
        # Factors of Resize are float32 by the operator's definition.
        assert all(numpy_helper.to_array(t).size <= 4 for t in floats)
    figures = bundle.manifest.numerics["onnx_vs_torch"]
    assert all(figures[name]["value"] > 60 for name in bundle.manifest.components)


def test_v_prediction_bundle_restores_like_an_independent_pipeline(tmp_path):
    source = make_source(tmp_path, functools.partial(make_stable_diffusion, prediction_type="v_prediction"))
    export(source.plan(tmp_path / "out", stages=(2,)))
    bundle = open_bundle(tmp_path / "out")
    expected = reference.restore(source.base, steps(source)[1:], picture())
    torch.testing.assert_close(run_bundle(bundle, picture()), expected, rtol=0, atol=1e-4)


def test_manifest_says_what_the_adapters_were_trained_for(bundles):
    manifest = open_bundle(bundles("stable_diffusion", "fp32")).manifest
    assert [(s.name, s.timestep, s.factor) for s in manifest.stages] == [
        ("stage1", TIMESTEPS[1], FACTORS[1]),
        ("stage2", TIMESTEPS[2], FACTORS[2]),
    ]
    assert (manifest.latent.channels, manifest.latent.pixels_per_cell) == (4, 2)
    assert manifest.latent.scaling_factor == 0.18215
    assert manifest.provenance["adapters"]["stage1"]["rank"] == 4
    assert manifest.licence == "Apache-2.0"


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_have_one_input_and_nothing_of_time_or_prompt(kind, bundles):
    bundle = open_bundle(bundles(kind, "fp32"))
    for component in ("unet_stage1", "unet_stage2"):
        model = onnx.load(bundle.path(bundle.variant(component)))
        assert [i.name for i in model.graph.input] == ["z_L"]
        assert [o.name for o in model.graph.output] == ["z_H"]
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 22)]
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"Sin", "Cos", "Shape", "Cast"}
        constants = {t.name for t in model.graph.initializer}
        assert all(set(node.input) - constants for node in model.graph.node), "something is left to fold"
        names = " ".join(t.name for t in model.graph.initializer)
        for word in ("time", "lora", "base_layer", "attn2.to_k.weight", "attn2.to_v.weight"):
            assert word not in names


@pytest.mark.parametrize("kind", KINDS)
def test_files_tell_nothing_about_the_machine(kind, bundles):
    folder = bundles(kind, "fp32")
    tell_tales = [b"stack_trace", b".py", b"site-packages", b"pkg.torch", b"pytest"]
    places = Path.home(), Path.cwd(), folder.parent, Path(torch.__file__).parents[2]
    # a short one, as / is where a container has no home, is found in anything
    tell_tales += [str(place).encode() for place in places if len(str(place)) > 4]
    for file in folder.rglob("*"):
        found = [word for word in tell_tales if file.is_file() and word in file.read_bytes()]
        assert not found, f"{file.name} holds {found}"


def test_model_card_names_licence_and_figures(bundles):
    card = (bundles("nano", "fp32") / "README.md").read_text()
    assert "Licence of the weights: Apache-2.0." in card
    assert "| runtime_vs_torch | photograph, all stages |" in card
    assert "| tensorrt_rtx | - | not run: tensorrt-rtx is left out of this test | - | - |" in card
    assert "| stage2 | x2 | 41 |" in card


@pytest.mark.thorough
@pytest.mark.usefixtures("every_graph_anew")
def test_a_second_export_has_the_same_graphs(nano, bundles, tmp_path):
    first = open_bundle(bundles("nano", "fp16")).manifest
    export(nano.plan(tmp_path / "again", "fp16", stages=(1,)))
    again = open_bundle(tmp_path / "again").manifest
    assert again.components["unet_stage1"] == first.components["unet_stage1"]
    assert again.components["vae_encoder"] == first.components["vae_encoder"]
    assert again.components["vae_decoder"] == first.components["vae_decoder"]


@pytest.mark.thorough
def test_large_weights_lie_beside_the_graph(nano, tmp_path, monkeypatch):
    monkeypatch.setitem(onnx_export.EXTERNAL_FROM, "fp32", 1000)
    export(nano.plan(tmp_path / "out", stages=(1,)))
    bundle = open_bundle(tmp_path / "out")
    unet = bundle.variant("unet_stage1")
    assert [file.path for file in unet.files] == ["unet_stage1/model.onnx", "unet_stage1/model.onnx.data"]
    assert [file.path for file in bundle.variant("vae_encoder").files] == ["vae_encoder/model.onnx"]
    expected = reference.restore(nano.base, steps(nano)[:1], picture())
    torch.testing.assert_close(run_bundle(bundle, picture()), expected, rtol=0, atol=1e-4)
