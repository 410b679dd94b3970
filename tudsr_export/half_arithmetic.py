"""Half arithmetic on a processor without kernels for it: float32 inside of an operator, half around it.

Most processors have no half convolution or matrix product; PyTorch computes them there, but some hundred
times slower than in float32. What a GPU does in half is a product of half values, summed in float32 and
rounded once to half. So is what happens here, at the speed of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_aten = torch.ops.aten
SUMS = frozenset(
    (
        _aten.convolution,
        _aten.mm,
        _aten.addmm,
        _aten.bmm,
        _aten.baddbmm,
        _aten._scaled_dot_product_flash_attention_for_cpu,
    )
)
"""The operators that sum products, into which PyTorch takes all others of that kind apart."""


class HalfArithmetic(TorchDispatchMode):
    """Within its context, `SUMS` of half tensors are computed in float32 and rounded to half; of bfloat16
    tensors, to bfloat16.

    What is of neither stays as it is, islands in float32 too. For inference: gradients are not considered.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        narrow = _narrow(args) if func.overloadpacket in SUMS else None
        if narrow is None:
            return func(*args, **kwargs)
        args = tree_map_only(Tensor, _cast(narrow, torch.float32), args)
        return tree_map_only(Tensor, _cast(torch.float32, narrow), func(*args, **kwargs))


def _narrow(args: tuple[Any, ...]) -> torch.dtype | None:
    """The first type of two bytes among tensors."""
    types = (value.dtype for value in args if isinstance(value, Tensor))
    return next((dtype for dtype in types if dtype in (torch.float16, torch.bfloat16)), None)


def _cast(source: torch.dtype, target: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(target) if x.dtype == source else x
