"""How large the values inside a module become: what decides whether it can run in float16."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class MagnitudeScan(TorchFunctionMode):
    """Within its context, notes the largest |value| that any torch function returns.

    Attention logits count too: they are inside one torch function, but the exported graph stores them.
    """

    largest = 0.0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._note(result)
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            self._note(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]))
        return result

    def _note(self, result: Any) -> None:
        if isinstance(result, Tensor) and result.is_floating_point() and result.numel():
            low, high = result.aminmax()
            self.largest = max(self.largest, -float(low), float(high))


def run_scanned(module: nn.Module, values: Tensor) -> tuple[Tensor, float]:
    """The module's output, and the largest |value| on the way to it."""
    with MagnitudeScan() as scan:
        output = module(values)
    return output, scan.largest
