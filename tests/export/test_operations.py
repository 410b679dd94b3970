"""Counted operations against PyTorch's own counter, and what full-size pictures take."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.full_size import unet_and_vae
from tests.export.conftest import TILE
from tudsr_export.onnx_export import Port, export_onnx
from tudsr_export.operations import count_macs
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.tiling.cost import TileCosts
from tudsr_runtime.tiling.plan import plan_upscale


def counted_by_torch(run) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


class Each(nn.Module):
    """One of every operator that is counted, with groups, strides and batches."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.transposed = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        x = self.transposed(self.grouped(x)).flatten(2).transpose(1, 2)
        return (x := self.linear(x)) @ x.transpose(1, 2)


@pytest.mark.parametrize("batch", [1, 3])
def test_every_operator_is_counted_as_pytorch_counts_it(batch, tmp_path):
    module, x = Each().eval(), torch.zeros(batch, 4, 8, 8)
    model = export_onnx(module, tmp_path / "m", Port("x", tuple(x.shape)), Port("y", (batch, 64, 64)), "fp32")
    assert count_macs(model) == counted_by_torch(lambda: module(x))


@pytest.mark.parametrize(("kind", "precision"), [("nano", "fp16"), ("stable_diffusion", "fp32")])
def test_a_bundle_counts_each_graph(kind, precision, sources, bundles):
    from tudsr_train.generator import Generator

    bundle, generator = open_bundle(bundles(kind, precision)), Generator.load(sources[kind].base)
    x = torch.zeros(1, 3, TILE, TILE)
    z = generator.encode(x).detach()
    # In the graph the timestep and the prompt are constants; what they take is not computed any more.
    unet = counted_by_torch(lambda: generator.predict(z, 1))
    found = {name: bundle.variant(name).macs for name in bundle.manifest.components}
    assert found["vae_encoder"] == pytest.approx(counted_by_torch(lambda: generator.encode(x)), rel=0.01)
    assert found["vae_decoder"] == pytest.approx(counted_by_torch(lambda: generator.decode(z)), rel=0.01)
    assert 0.9 * unet < found["unet_stage1"] == found["unet_stage2"] <= unet
    for component in bundle.manifest.components.values():
        assert {variant.macs for variant in component.variants} == {component.variants[0].macs}


@pytest.fixture(scope="module")
def full_size() -> TileCosts:
    """Stable Diffusion 2.1's own networks, without weights: what they take at each size of tile."""
    with torch.device("meta"):
        unet, vae = unet_and_vae()
        prompt = torch.zeros(1, 77, 1024)

        def tile(size: int) -> float:
            z = torch.zeros(1, 4, size // 8, size // 8)
            x = torch.zeros(1, 3, size, size)
            return 1e-12 * sum(
                counted_by_torch(run)
                for run in (lambda: vae.encode(x), lambda: unet(z, 0, prompt), lambda: vae.decode(z))
            )

        each = {size: tile(size) for size in (256, 512, 576)}
    return TileCosts({(stage, size): each[size] for stage in (0, 1) for size in each})


@pytest.mark.parametrize(
    ("side", "scale", "limit"), [(128, 4, 2.8), (128, 8, 13.6), (256, 4, 13.6), (256, 8, 56.8)]
)
def test_the_rows_of_table_3_at_full_size(full_size, side, scale, limit):
    plan = plan_upscale(side, side, scale, tile=(576, 512, 256), overlap=80, costs=full_size)
    assert round(plan.cost, 1) <= limit
