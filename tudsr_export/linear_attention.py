"""Sana's linear attention, so that it survives the export: a quotient whose divisor may be zero.

Queries and keys are rectified, so that a picture can make all of a head's zero; diffusers adds 1e-15 to the
divisor, and 0 / 1e-15 is 0. onnxscript's optimizer takes 1e-15 for the 0 of `x + 0` (it compares constants
with a tolerance of 1e-8) and removes the addition: 0 / 0 is NaN, in every engine that runs the graph. A
maximum in its place gives the same for every divisor, and stays.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    Attention,
    SanaLinearAttnProcessor2_0,
    SanaMultiscaleLinearAttention,
)
from torch import Tensor, nn

LEAST = 1e-15
"""diffusers' own; the divisor is a sum of products that are not negative."""


def _quotient(both: Tensor) -> Tensor:
    """(..., d + 1, n) to (..., d, n): all but the last row over the last, which is the divisor."""
    return both[:, :, :-1] / both[:, :, -1:].clamp(min=LEAST)


class MultiscaleLinearAttention(SanaMultiscaleLinearAttention):
    """That of a DC-AE."""

    def apply_linear_attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        value = F.pad(value, (0, 0, 0, 1), mode="constant", value=1.0)
        scores = torch.matmul(value, key.transpose(-1, -2))
        return _quotient(torch.matmul(scores, query).float())

    def apply_quadratic_attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = torch.matmul(key.transpose(-1, -2), query).float()
        scores = scores / scores.sum(dim=2, keepdim=True).clamp(min=LEAST)
        return torch.matmul(value, scores.to(value.dtype))


class LinearProcessor:
    """That of the transformer."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        query = F.relu(query.transpose(1, 2).unflatten(1, (attn.heads, -1))).float()
        key = F.relu(key.transpose(1, 2).unflatten(1, (attn.heads, -1)).transpose(2, 3)).float()
        value = value.transpose(1, 2).unflatten(1, (attn.heads, -1)).float()
        value = F.pad(value, (0, 0, 0, 1), mode="constant", value=1.0)
        found = _quotient(torch.matmul(torch.matmul(value, key), query))
        result: Tensor = attn.to_out[0](found.flatten(1, 2).transpose(1, 2).to(hidden_states.dtype))
        return result


def guard_linear_attention(module: nn.Module) -> nn.Module:
    """Replace every linear attention within, in place; its weights stay."""
    for part in module.modules():
        if isinstance(part, SanaMultiscaleLinearAttention):
            part.__class__ = MultiscaleLinearAttention
        elif isinstance(part, Attention) and isinstance(part.processor, SanaLinearAttnProcessor2_0):
            part.processor = LinearProcessor()
    return module
