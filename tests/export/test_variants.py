"""What a person may ask for: other sizes, adapters beside the weights, other timesteps."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
import torch

from tests.export import reference
from tests.export.conftest import TILE, export
from tests.export.test_bundle_equals_generator import picture, run_bundle
from tudsr_export.export import sized as given_sizes
from tudsr_export.gates import run_onnx
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.errors import BundleError
from tudsr_train.generator import Generator

LARGER = 96


@pytest.fixture(scope="module")
def sized(nano, tmp_path_factory):
    output = tmp_path_factory.mktemp("sized") / "out"
    export(replace(nano.plan(output, "fp16", stages=(1,), batches=(2,), tiles=(TILE,)), tile=LARGER))
    return open_bundle(output)


def test_other_sizes_are_further_variants_over_the_same_weights(sized):
    variants = sized.manifest.components["unet_stage1"].variants
    sizes = [(v.batch, v.tile, v.precision) for v in variants]
    shapes = [(1, LARGER), (2, LARGER), (1, TILE)]
    assert sizes == [(*shape, precision) for shape in shapes for precision in ("fp16", "fp32")]
    data = {file.path for variant in variants for file in variant.files if file.path.endswith(".data")}
    assert data == {"unet_stage1/model.onnx.data"}
    files = {file.path: file.bytes for variant in variants for file in variant.files}
    graphs = sum(size for path, size in files.items() if not path.endswith(".data"))
    assert graphs < files["unet_stage1/model.onnx.data"], "the weights are there once"


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_batch_is_its_pictures_one_by_one(precision, sized):
    z = torch.randn(2, *sized.variant("unet_stage1").inputs[0].shape[1:]) / 2
    together = run_onnx(sized.path(sized.variant("unet_stage1", precision=precision, batch=2)), z)
    one = sized.path(sized.variant("unet_stage1", precision=precision))
    alone = torch.cat([run_onnx(one, z[:1]), run_onnx(one, z[1:])])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-2 if precision == "fp16" else 1e-4)


def test_another_tile_is_restored_like_an_independent_pipeline_does(sized, nano):
    x = picture()
    expected = reference.restore(nano.base, [(nano.stage1, sized.manifest.stages[0].timestep)], x)
    for component in ("vae_encoder", "unet_stage1", "vae_decoder"):
        x = run_onnx(sized.path(sized.variant(component, precision="fp32", tile=TILE)), x)
    assert 10 * torch.log10(4 / (x.clamp(-1, 1) - expected).square().mean()) > 60


def test_a_large_base_gets_further_sizes_unless_some_are_asked_for(nano, tmp_path):
    plan, base = replace(nano.plan(tmp_path / "out", tiles=None), tile=512), Generator.load(nano.base)
    assert given_sizes(plan, base).tiles == ()
    base.unet.register_parameter("much", torch.nn.Parameter(torch.empty(300_000_000, device="meta")))
    assert [shape.tile for shape in given_sizes(plan, base).shapes] == [512, 256, 576]
    assert [shape.tile for shape in given_sizes(replace(plan, tiles=(512,)), base).shapes] == [512]


def test_without_merging_the_branches_keep_their_names(stable_diffusion, tmp_path):
    """Another timestep than the adapter's own was asked for too."""
    source = stable_diffusion
    report = export(source.plan(tmp_path / "out", stages=(1,), merge=False, timesteps={1: 273}))
    assert not [m for m in report.measurements if m.gate.name == "merged_vs_lora"]
    bundle = open_bundle(tmp_path / "out")
    assert bundle.manifest.provenance["merged"] is False
    assert bundle.manifest.stages[0].timestep == 273
    assert "kept as branches" in " ".join((tmp_path / "out" / "README.md").read_text().split())
    names = {t.name for t in onnx.load(bundle.path(bundle.variant("unet_stage1"))).graph.initializer}
    for layer in ("conv_in", "conv_out", "down_blocks.0.resnets.0.conv1"):
        assert len([name for name in names if f"unet.{layer}.lora_" in name]) == 2, layer
    assert not [name for name in names if "attn2.to_k" in name], "the prompt's keys are constants"
    expected = reference.restore(source.base, [(source.stage1, 273)], picture())
    torch.testing.assert_close(run_bundle(bundle, picture()), expected, rtol=0, atol=2e-4)


def test_a_timestep_that_the_base_lacks(nano, tmp_path):
    with pytest.raises(BundleError, match="timestep 1000 is outside the schedule"):
        export(nano.plan(tmp_path / "out", stages=(1,), timesteps={1: 1000}))
    assert not list(tmp_path.iterdir())
