"""The float32 graph over the half weights: same weights, no half arithmetic, no second copy."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.export.test_bundle_equals_generator import export
from tudsr_export.float32_graph import holds_bfloat16, write_float32_graph, write_rounded_graph
from tudsr_export.gates import run_onnx
from tudsr_export.half_arithmetic import HalfArithmetic
from tudsr_export.onnx_export import Port, export_onnx
from tudsr_runtime.bundle import open_bundle

SHAPE = (1, 8, 16, 16)


class Block(nn.Module):
    """What a UNet is made of, with a constant and a float32 island."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1)
        self.register_buffer("gain", torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(nn.functional.silu(self.norm(x))) * self.gain
        return x + (h.float().softmax(1) * 3).to(x.dtype)


@pytest.mark.parametrize("external_from", [0, 10**9])
def test_equals_torch_with_the_rounded_weights(external_from, tmp_path):
    module = Block().eval()
    half = Block().eval()
    half.load_state_dict(module.state_dict())
    export_onnx(half.half(), tmp_path / "m", Port("x", SHAPE), Port("y", SHAPE), "fp16", external_from)
    wide = write_float32_graph(tmp_path / "m" / "model.onnx")
    x = torch.randn(SHAPE)
    with torch.no_grad():
        expected = half.float()(x)
    torch.testing.assert_close(run_onnx(wide, x), expected, rtol=0, atol=2e-6)
    assert float((run_onnx(tmp_path / "m" / "model.onnx", x) - expected).abs().max()) > 1e-4


def test_weights_are_shared_and_half_in_the_file(tmp_path):
    export_onnx(Block().eval().half(), tmp_path / "m", Port("x", SHAPE), Port("y", SHAPE), "fp16", 0)
    wide = onnx.load(write_float32_graph(tmp_path / "m" / "model.onnx"), load_external_data=False)
    narrow = onnx.load(tmp_path / "m" / "model.onnx", load_external_data=False)

    def places(model):
        return {
            t.name: [(e.key, e.value) for e in t.external_data if e.key != "checksum"]
            for t in model.graph.initializer
            if t.external_data
        }

    assert places(wide)
    assert places(wide).items() <= places(narrow).items()
    values = [*wide.graph.input, *wide.graph.output]
    assert {v.type.tensor_type.elem_type for v in values} == {onnx.TensorProto.FLOAT}
    halves = [t for t in wide.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    readers = [node.op_type for node in wide.graph.node if {t.name for t in halves} & set(node.input)]
    assert readers == ["Cast"] * len(halves)


def test_half_bundle_has_both_and_a_cpu_takes_the_float32_one(nano, tmp_path):
    export(nano.plan(tmp_path / "out", "fp16", stages=(1,)))
    bundle = open_bundle(tmp_path / "out")
    component = bundle.manifest.components["unet_stage1"]
    assert [v.precision for v in component.variants] == ["fp16", "fp32"]
    assert component.variants[1].model == "unet_stage1/model_fp32.onnx"
    assert bundle.variant("unet_stage1").precision == "fp16"
    assert bundle.variant("unet_stage1", preferred="fp32").precision == "fp32"
    assert bundle.variant("unet_stage1", preferred="bf16").precision == "fp16"
    x = torch.from_numpy(
        np.random.default_rng(0).uniform(-1, 1, component.variants[0].inputs[0].shape)
    ).float()
    narrow, wide = (run_onnx(bundle.path(v), x) for v in component.variants)
    torch.testing.assert_close(wide, narrow, rtol=0, atol=2e-2)
    assert not torch.equal(wide, narrow)


class Wide(nn.Module):
    """A block that is bfloat16 between half and half, and a reordering that is exported as an Einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 1)).bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.einsum("nchw->nwhc", self.block((8192 * x).to(self.block[0].weight.dtype)))
        return x + (h / 8192).to(x.dtype).permute(0, 3, 2, 1)


@pytest.mark.parametrize("external_from", [0, 10**9])
@torch.no_grad()
def test_what_is_bfloat16_is_rounded_where_there_are_no_kernels_for_it(
    external_from: int, tmp_path: Path
) -> None:
    module, x = Wide().eval(), torch.randn(SHAPE)
    model = export_onnx(module, tmp_path / "m", Port("x", SHAPE), Port("y", SHAPE), "fp16", external_from)
    assert holds_bfloat16(model)
    with HalfArithmetic():
        rounded = module(x.half()).float()
    module.block.float()
    exact = module(x)
    wide = write_float32_graph(model)
    assert not holds_bfloat16(wide)
    torch.testing.assert_close(run_onnx(wide, x), exact, rtol=0, atol=1e-5)
    found = run_onnx(write_rounded_graph(model), x)
    # bfloat16 keeps 8 bits; kernels that sum in another order may round to the next of them
    torch.testing.assert_close(found, rounded, rtol=0, atol=2**-6)
    apart = [float((y - exact).square().mean()) for y in (found, rounded)]
    assert min(apart) > 1e-8
    assert apart[0] == pytest.approx(apart[1], rel=0.2)


def test_half_alone_holds_no_bfloat16(tmp_path: Path) -> None:
    model = export_onnx(Block().eval().half(), tmp_path / "m", Port("x", SHAPE), Port("y", SHAPE), "fp16")
    assert not holds_bfloat16(model)
