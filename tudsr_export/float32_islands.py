"""What half arithmetic cannot hold: found by a scan, and kept in float32 by islands in the module itself.

Nothing can be decided later: TensorRT 11 runs what the graph says. Two kinds of island:

    a block       Island around it: weights and arithmetic float32, half at its border
    attention     float32 queries, keys and values, so that q k^T and its softmax are float32; weights half

Where a transformer's values leave half's range they tend to do so in most of its blocks, for each hands on
what the one before it gave. Float32 would then be most of the network, so all of it is bfloat16 instead: as
small as half, with float32's range. What surrounds it, the sum with z_L first of all, stays half.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

BFLOAT16_FROM = 0.25
"""Share of a network's weights in float32 islands from which all of it is bfloat16 instead: they are twice as
large, and a GPU takes several times as long for their arithmetic."""


@dataclass(frozen=True)
class Islands:
    """What of a module stays in float32, by the names of its parts."""

    blocks: frozenset[str] = frozenset()
    attention: frozenset[str] = frozenset()
    bfloat16: frozenset[str] = frozenset()
    """What is bfloat16 but for the float32 within."""

    def __or__(self, other: Islands) -> Islands:
        return Islands(
            self.blocks | other.blocks, self.attention | other.attention, self.bfloat16 | other.bfloat16
        )

    def __bool__(self) -> bool:
        return bool(self.blocks or self.attention or self.bfloat16)

    def as_json(self) -> dict[str, list[str]]:
        """The names by kind; bfloat16 only where there is any."""
        known = {"blocks": sorted(self.blocks), "attention": sorted(self.attention)}
        return known | ({"bfloat16": sorted(self.bfloat16)} if self.bfloat16 else {})


NONE = Islands()


@dataclass
class Peaks:
    """Largest |value| by the block in which it arises and leaves half storage; "" is the whole module."""

    blocks: dict[str, float] = field(default_factory=dict)
    logits: dict[str, float] = field(default_factory=dict)
    """Largest |q k^T / sqrt(d)|, by attention module."""
    bfloat16: dict[str, float] = field(default_factory=dict)
    """As `blocks`, within what is bfloat16."""

    @property
    def largest(self) -> float:
        """The largest of all that is half; NaN where any value is NaN."""
        values = [*self.blocks.values(), *self.logits.values()]
        return math.nan if any(math.isnan(value) for value in values) else max(values, default=0.0)

    def note(self, kind: dict[str, float], name: str, value: float) -> None:
        """Keep the larger; NaN stays."""
        known = kind.get(name, 0.0)
        kind[name] = value if math.isnan(value) or value > known else known


class MagnitudeScan(TorchFunctionMode):
    """Within its context, notes the largest |value| of every torch function's result, by module.

    Attention logits count too: they are inside one torch function, but the exported graph stores them. What
    happens inside of `islands` does not count; what leaves them does.
    """

    def __init__(self, module: nn.Module, islands: Islands = NONE) -> None:
        super().__init__()
        self.peaks, self._islands = Peaks(), islands
        self._module, self._stack, self._hooks = module, [""], ExitStack()

    def __enter__(self) -> MagnitudeScan:
        for name, part in self._module.named_modules():
            if name:
                self._watch(name, part)
        TorchFunctionMode.__enter__(self)
        return self

    def __exit__(self, *error: Any) -> None:
        TorchFunctionMode.__exit__(self, *error)
        self._hooks.close()

    def _watch(self, name: str, part: nn.Module) -> None:
        def enter(*_: Any) -> None:
            self._stack.append(name)

        def leave(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._stack.pop()
            if name in self._islands.blocks or name in self._islands.bfloat16:
                tree_map_only(Tensor, self._note, output)

        self._hooks.callback(part.register_forward_pre_hook(enter).remove)
        self._hooks.callback(part.register_forward_hook(leave).remove)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._note(result)
        if func is F.scaled_dot_product_attention and self._block() not in self._islands.attention:
            named = kwargs or {}
            query, key = args[:2] if args else (named["query"], named["key"])
            scale = named.get("scale") or 1 / math.sqrt(query.shape[-1])
            self._note(query @ key.transpose(-1, -2) * scale, logits=True)
        return result

    def _block(self) -> str:
        """The innermost module that has parts of its own: a leaf's result belongs to what calls it."""
        for name in reversed(self._stack):
            part = self._module.get_submodule(name)
            if name == "" or next(part.children(), None) is not None:
                return name
        return ""

    def _note(self, result: Tensor, logits: bool = False) -> None:
        if self._islands.blocks.intersection(self._stack):
            return
        if result.is_floating_point() and result.numel():
            low, high = result.aminmax()
            kind = self.peaks.logits if logits else self.peaks.blocks
            if self._islands.bfloat16.intersection(self._stack):
                if logits:
                    return
                kind = self.peaks.bfloat16
            self.peaks.note(kind, self._block(), max(-float(low), float(high), key=_nan_first))


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


@torch.no_grad()
def run_scanned(
    module: nn.Module, tiles: Iterable[Tensor], islands: Islands = NONE
) -> tuple[list[Tensor], Peaks]:
    """The module's output for every tile, and the peaks on the way to them."""
    with MagnitudeScan(module, islands) as scan:
        outputs = [module(tile) for tile in tiles]
    return outputs, scan.peaks


def upcast_by_config(module: nn.Module) -> Islands:
    """The attention that the base's own config (`upcast_attention`) wants in float32."""
    names = (name for name, part in module.named_modules() if isinstance(part, Attention))
    return Islands(attention=frozenset(name for name in names if module.get_submodule(name).upcast_attention))


def find_islands(
    module: nn.Module, tiles: list[Tensor], limit: float, rounds: int = 4, network: str | None = None
) -> tuple[Islands, list[Tensor], Peaks]:
    """Islands with which no value outside of them is above `limit`, if there are any; outputs; what is left.

    Where a value above it leaves an island, the next round takes the block around that.

    Args:
        network: the part that may be bfloat16 as a whole: where float32 islands do not suffice, or would hold
            `BFLOAT16_FROM` of its weights.
    """
    islands = upcast_by_config(module)
    outputs, peaks = run_scanned(module, tiles, islands)
    for _ in range(rounds):
        more = _above(peaks, limit)
        if islands | more == islands:
            break
        islands = islands | more
        outputs, peaks = run_scanned(module, tiles, islands)
    if network is not None and (
        not peaks.largest <= limit or float32_share(module, islands, network) >= BFLOAT16_FROM
    ):
        islands = Islands(bfloat16=frozenset([network]))
        outputs, peaks = run_scanned(module, tiles, islands)
    return islands, outputs, peaks


def float32_share(module: nn.Module, islands: Islands, network: str) -> float:
    """The share of a part's weights that lies in float32 blocks."""
    inside = [n for n in islands.blocks if n == network or _inside(n, (network,))]
    outer = [n for n in inside if not _inside(n, inside)]
    held = sum(p.numel() for n in outer for p in module.get_submodule(n).parameters())
    return held / max(1, sum(p.numel() for p in module.get_submodule(network).parameters()))


def _above(peaks: Peaks, limit: float) -> Islands:
    blocks = (name for name, value in peaks.blocks.items() if not value <= limit)
    logits = (name for name, value in peaks.logits.items() if not value <= limit)
    return Islands(frozenset(filter(_is_part, blocks)), frozenset(logits))


def _is_part(name: str) -> bool:
    """Whether a block is small enough to be an island: neither the graph nor one of its main parts."""
    return "." in name


def next_island(peaks: Peaks, islands: Islands) -> tuple[float, Islands]:
    """The block with the largest values that is no island yet, where half loses most, and that value.

    (-1, no islands) where there is none.
    """
    known = peaks.blocks | peaks.bfloat16
    rest = {n: v for n, v in known.items() if _is_part(n) and n not in islands.blocks}
    if not rest:
        return -1.0, NONE
    name = max(rest, key=rest.__getitem__)
    return rest[name], Islands(frozenset([name]))


class Island(nn.Module):
    """A block of another type than what surrounds it: its border is that of its surroundings.

    Args:
        inside, outside: the types; tensors of others pass as they are.
    """

    def __init__(self, block: nn.Module, inside: torch.dtype, outside: torch.dtype) -> None:
        super().__init__()
        self.block, self.inside, self.outside = block, inside, outside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, _cast(self.outside, self.inside), (args, kwargs))
        return tree_map_only(Tensor, _cast(self.inside, self.outside), self.block(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        """What a diffusers model asks of its blocks, such as `has_cross_attention`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


class Cast(nn.Module):
    """Gives its input in another floating type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


def _cast(source: torch.dtype, target: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(target) if x.dtype == source else x


def to_half(module: nn.Module, islands: Islands) -> nn.Module:
    """A half copy of a float32 module, with its islands. The module stays as it is."""
    half = copy.deepcopy(module)
    outer = {name for name in islands.blocks if not _inside(name, islands.blocks)}
    kept: Mapping[str, nn.Module] = {name: copy.deepcopy(half.get_submodule(name)) for name in outer}
    narrow = {name: copy.deepcopy(half.get_submodule(name)).bfloat16() for name in islands.bfloat16}
    half.half()
    for name, block in narrow.items():
        half.set_submodule(name, block)

    def around(name: str) -> torch.dtype:
        return torch.bfloat16 if _inside(name, narrow) else torch.float16

    for name in islands.attention:
        if name not in outer and not _inside(name, outer):
            _upcast(half.get_submodule(name), around(name))
    for name, block in kept.items():
        half.set_submodule(name, Island(block, torch.float32, around(name)))
    for name in narrow:
        half.set_submodule(name, Island(half.get_submodule(name), torch.bfloat16, torch.float16))
    return half


def _inside(name: str, blocks: Iterable[str]) -> bool:
    return any(name.startswith(f"{block}.") for block in blocks)


def _upcast(attention: Attention, weights: torch.dtype) -> None:
    for name in ("to_q", "to_k", "to_v"):
        setattr(attention, name, nn.Sequential(getattr(attention, name), Cast(torch.float32)))
    attention.to_out[0] = nn.Sequential(Cast(weights), attention.to_out[0])
