"""Half precision: what the scan finds, what stays in float32, and that the export goes by it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from tests.export.conftest import Source, export, make_adapter, make_nano
from tudsr_export.float32_islands import (
    NONE,
    Island,
    Islands,
    find_islands,
    next_island,
    run_scanned,
    to_half,
    upcast_by_config,
)
from tudsr_export.half_arithmetic import HalfArithmetic
from tudsr_runtime.bundle import open_bundle
from tudsr_runtime.errors import NotFiniteError
from tudsr_train.generator import Generator

LIMIT = 65504 / 4


class Loud(nn.Module):
    """Grows by `gain` inside and shrinks again; `leak` is what is left when it comes out."""

    def __init__(self, gain: float, leak: float = 1.0) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.up.weight.data = torch.eye(4) * gain
        self.down.weight.data = torch.eye(4) / gain * leak

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x))


class Model(nn.Module):
    """Two main parts, each of two blocks."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_the_scan_names_the_block_and_keeps_nan():
    model = Model(Loud(10), Loud(300))
    (output,), peaks = run_scanned(model, [torch.ones(1, 4)])
    torch.testing.assert_close(output, torch.ones(1, 4))
    assert peaks.blocks["body.0"] == pytest.approx(10)
    assert peaks.blocks["body.1"] == pytest.approx(300)
    assert next_island(peaks, NONE) == (pytest.approx(300), Islands(frozenset(["body.1"])))
    assert next_island(peaks, Islands(frozenset(["body.0", "body.1"]))) == (-1, NONE)
    _, peaks = run_scanned(model, [torch.full((1, 4), torch.nan)])
    assert not peaks.largest <= LIMIT


@torch.no_grad()
def test_what_half_cannot_hold_becomes_an_island_and_computes_in_float32():
    model = Model(Loud(2), Loud(1e6))
    x = torch.tensor([[1.0, -0.5, 0.25, 0.0]])
    assert not torch.isfinite(to_half(model, NONE)(x.half())).all()
    islands, outputs, peaks = find_islands(model, [x], LIMIT)
    assert islands == Islands(frozenset(["body.1"]))
    assert peaks.largest <= LIMIT
    half = to_half(model, islands)
    assert isinstance(half.body[1], Island)
    assert half.body[1].block.up.weight.dtype == torch.float32
    assert half.body[0].up.weight.dtype == torch.float16
    assert half(x.half()).dtype == torch.float16
    torch.testing.assert_close(half(x.half()).float(), outputs[0], rtol=0, atol=1e-3)
    assert model.body[1].up.weight.dtype == torch.float32, "the float32 model stays as it is"


def test_what_leaves_an_island_still_counts():
    """The block around is the next island, until none is left that is only a part."""
    inner = nn.Sequential(Loud(1e6, leak=1e5), Loud(10, leak=1e-5))
    islands, _, peaks = find_islands(Model(nn.Sequential(inner)), [torch.ones(1, 4)], LIMIT)
    assert peaks.largest <= LIMIT
    assert "body.0.0" in islands.blocks
    _, _, peaks = find_islands(Model(Loud(1e6, leak=1e5)), [torch.ones(1, 4)], LIMIT)
    assert peaks.largest > LIMIT


def stream(*gains: float) -> nn.Module:
    """Blocks that each hand on what they gave, as a transformer's."""
    return nn.Sequential(Model(*(Loud(gain) for gain in gains)))


@pytest.mark.parametrize(
    ("gains", "wide"), [((1e6, 1.0, 1.0, 1.0, 1.0), False), ((1e6, 1.0, 1.0, 1.0), True), ((1.0, 1.0), False)]
)
def test_a_network_of_which_float32_would_be_much_is_bfloat16(gains: tuple[float, ...], wide: bool) -> None:
    model, x = stream(*gains), torch.ones(1, 4)
    islands, _, peaks = find_islands(model, [x], LIMIT, network="0")
    assert (islands.bfloat16 == frozenset("0"), bool(islands.blocks)) == (wide, gains[0] > 1 and not wide)
    assert peaks.largest <= LIMIT
    assert find_islands(model, [x], LIMIT)[0].bfloat16 == frozenset()
    if wide:
        assert peaks.bfloat16["0.body.0"] == pytest.approx(1e6)
        assert next_island(peaks, islands) == (pytest.approx(1e6), Islands(frozenset(["0.body.0"])))


def test_what_a_bfloat16_network_gives_must_still_be_half() -> None:
    model = nn.Sequential(Model(Loud(1e6, leak=1e5)))
    islands, _, peaks = find_islands(model, [torch.ones(1, 4)], LIMIT, network="0")
    assert islands.bfloat16 == frozenset("0")
    assert peaks.largest == pytest.approx(1e5)


@torch.no_grad()
def test_a_bfloat16_network_is_narrow_and_near_with_float32_within() -> None:
    model = stream(1e6, 3.0)
    x = torch.tensor([[1.0, -0.5, 0.3, 0.1]])
    islands = Islands(frozenset(["0.body.1"]), bfloat16=frozenset(["0"]))
    half = to_half(model, islands)
    network = half[0].block
    assert network.body[0].up.weight.dtype == torch.bfloat16
    assert network.body[1].block.up.weight.dtype == torch.float32
    assert network.body[1].outside == torch.bfloat16
    with HalfArithmetic():
        found = half(x.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), model(x), rtol=2**-7, atol=0)
    assert not torch.equal(found.float(), model(x))
    assert islands.as_json() == {"blocks": ["0.body.1"], "attention": [], "bfloat16": ["0"]}


def attention(upcast: bool = False, size: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    block = Attention(16, heads=2, dim_head=8, upcast_attention=upcast).eval()
    block.to_q.weight.data *= size
    block.to_k.weight.data *= size
    return Model(block)


@torch.no_grad()
def test_attention_that_overflows_is_computed_in_float32_with_half_weights():
    model, x = attention(size=3000.0), torch.randn(1, 5, 16)
    islands, outputs, peaks = find_islands(model, [x], LIMIT)
    assert islands == Islands(attention=frozenset(["body.0"]))
    assert peaks.largest <= LIMIT
    half = to_half(model, islands)
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    torch.testing.assert_close(half(x.half()).float(), outputs[0], rtol=0, atol=5e-3)


def test_the_base_s_own_config_upcasts_its_attention():
    assert upcast_by_config(attention(upcast=True)) == Islands(attention=frozenset(["body.0"]))
    assert not upcast_by_config(attention())


def loud_source(folder: Path) -> Source:
    """A nano base whose first residual block overflows half between its convolution and its norm."""
    base = folder / "base"
    base.mkdir()
    make_nano(base)
    generator = Generator.load(base)
    generator.unet.down_blocks[0].resnets[0].conv1.weight.data *= 1e6
    generator.unet.save_pretrained(base / "unet")
    return Source(base, make_adapter(base, folder / "stage1", 1), folder / "none")


def test_an_export_keeps_an_island_says_so_and_passes_every_gate(tmp_path):
    lines: list[str] = []
    from tudsr_export.export import export_bundle
    from tudsr_export.gates import Report

    source = loud_source(tmp_path)
    export_bundle(source.plan(tmp_path / "out", "fp16", stages=(1,)), Report(), lines.append)
    block = "unet.down_blocks.0.resnets.0"
    assert f"unet_stage1: {block} stays in float32" in lines
    bundle = open_bundle(tmp_path / "out")
    kept = bundle.manifest.provenance["float32_islands"]
    assert kept == {"unet_stage1": {"blocks": [block], "attention": []}}
    model = onnx.load(bundle.path(bundle.variant("unet_stage1", precision="fp16")))
    large = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.dims}
    assert any("resnets.0" in name and "conv1" in name for name in large)


def test_without_islands_the_same_export_fails(tmp_path, monkeypatch):
    from tudsr_export import part

    def none(module, tiles, limit, network):
        del limit, network
        return NONE, *run_scanned(module, tiles)

    monkeypatch.setattr(part, "find_islands", none)
    with pytest.raises(NotFiniteError, match="fp16_range, unet_stage1"):
        export(loud_source(tmp_path).plan(tmp_path / "out", "fp16", stages=(1,)))
