"""Half on any processor: what its own half kernels give, without asking for one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.export.conftest import export
from tudsr_export.float32_islands import Islands, to_half
from tudsr_export.half_arithmetic import HalfArithmetic

WITHOUT_KERNEL = {
    "_scaled_dot_product_flash_attention_for_cpu", "addmm", "baddbmm", "bmm", "convolution", "einsum",
    "linear", "matmul", "mm", "mv",
}  # fmt: skip
"""What sums products, for which few processors have half arithmetic."""


class NoHalfKernels(TorchDispatchMode):
    """A processor whose products of half tensors do not come back within a day."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        halves = any(isinstance(x, torch.Tensor) and x.dtype == torch.float16 for x in args)
        if halves and func.overloadpacket.__name__ in WITHOUT_KERNEL:
            raise AssertionError(f"{func} of half tensors")
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_the_processor_without_half_kernels_says_so():
    x = torch.ones(1, 2, 4, 4).half()
    for call in (
        lambda: F.conv2d(x, x),
        lambda: F.linear(x, x[0, 0]),
        lambda: F.scaled_dot_product_attention(x, x, x),
    ):
        with pytest.raises(AssertionError, match="half"), NoHalfKernels():
            call()


def attention() -> nn.Module:
    return Attention(16, heads=2, dim_head=8).eval()


CASES = {
    "conv2d": (lambda: nn.Conv2d(4, 8, 3, padding=1), (2, 4, 9, 7)),
    "strided, no bias": (lambda: nn.Conv2d(4, 8, 3, stride=2, bias=False), (1, 4, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 8, 2, stride=2), (1, 4, 5, 5)),
    "linear": (lambda: nn.Linear(16, 8), (2, 5, 16)),
    "linear, no bias": (lambda: nn.Linear(16, 8, bias=False), (5, 16)),
    "attention": (attention, (2, 9, 16)),
    "norm and silu": (lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.SiLU()), (1, 8, 5, 5)),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_it_gives_what_the_processor_s_half_kernels_give(case):
    torch.manual_seed(0)
    make, shape = CASES[case]
    module, x = make().half(), torch.randn(shape).half()
    expected = module(x)
    with NoHalfKernels(), HalfArithmetic():
        result = module(x)
    assert result.dtype == torch.float16
    # One unit of half's last place: kernels sum in another order, and some round in between.
    torch.testing.assert_close(result, expected, rtol=2**-9, atol=2**-9)


@torch.no_grad()
def test_what_half_cannot_hold_becomes_infinite():
    x = torch.full((1, 4), 200.0).half()
    with HalfArithmetic():
        assert torch.isinf(F.linear(x, torch.full((1, 4), 200.0).half())).all()


@torch.no_grad()
def test_every_sum_is_rounded_to_half():
    x, weight = torch.randn(3, 16).half(), torch.randn(4, 16).half()
    with HalfArithmetic():
        result = F.linear(x, weight)
    assert torch.equal(result, F.linear(x.float(), weight.float()).half())


@torch.no_grad()
def test_islands_keep_float32():
    module = nn.Sequential(nn.Sequential(nn.Linear(16, 16)), nn.Sequential(nn.Linear(16, 16)))
    half = to_half(module, Islands(frozenset(["1"])))
    x = torch.randn(2, 16).half()
    with HalfArithmetic():
        middle = half[0](x)
        assert torch.equal(half(x), F.linear(middle.float(), module[1][0].weight, module[1][0].bias).half())


@pytest.mark.parametrize("kind", ["nano", "stable_diffusion"])
def test_an_export_asks_the_processor_for_no_half_kernel(kind, sources, tmp_path, monkeypatch):
    """Where there is none, `half_vs_float32` at full size would take hours."""
    from tudsr_export.part import Part

    run, ran = Part.run, []

    def watched(part: Part, x: torch.Tensor) -> torch.Tensor:
        ran.append(part.name)
        with NoHalfKernels():
            return run(part, x)

    monkeypatch.setattr(Part, "run", watched)
    export(sources[kind].plan(tmp_path / "out", "fp16", stages=(1,)))
    assert {"vae_encoder", "unet_stage1", "vae_decoder"} <= set(ran)
