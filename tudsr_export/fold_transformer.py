"""Constants of a stage, folded out of a transformer: what depends on timestep, prompt or size alone.

    time and pooled prompt    their embedding, and the modulation (AdaLN) that every block makes of it
    prompt                    its projection; keys and values too where text is only attended to (Sana). Where
                              it is carried through the blocks beside the picture (SD 3, FLUX) no more than
                              that is constant: after the first block it depends on the picture
    positions                 SD 3's table, of which a tile needs a small part, and FLUX's rotations

What is computed stays the same, but for float32 rounding. As in `fold`, the module that is given is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import PatchEmbed
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    AdaLayerNormZeroSingle,
    SD35AdaLayerNormZeroX,
)
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from torch import Tensor, nn

MODULATION = (AdaLayerNormZero, AdaLayerNormZeroSingle, SD35AdaLayerNormZeroX, AdaLayerNormContinuous)
EMBEDDERS = ("time_text_embed", "context_embedder", "time_embed", "caption_projection", "caption_norm")


class Folded(nn.Module):
    """Gives what a module gave for one picture, once for every picture of the batch."""

    def __init__(self, values: tuple[Tensor, ...], alone: bool) -> None:
        super().__init__()
        self.count, self.alone = len(values), alone
        for index, value in enumerate(values):
            self.register_buffer(f"value{index}", value)

    def forward(self, x: Tensor, *_: object, **__: object) -> Any:
        values = [getattr(self, f"value{index}") for index in range(self.count)]
        values = [value.expand(len(x), *value.shape[1:]) for value in values]
        return values[0] if self.alone else tuple(values)


def constant_parts(network: nn.Module) -> list[str]:
    """Names of the modules whose results depend on timestep and prompt alone."""
    found = [name for name in EMBEDDERS if hasattr(network, name)]
    for name, part in network.named_modules():
        if isinstance(part, MODULATION):
            found.append(f"{name}.linear")
        elif isinstance(part, Attention) and part.is_cross_attention:
            found += [f"{name}.to_k", f"{name}.to_v"]
    return found


@torch.no_grad()
def bake_constants(network: nn.Module, run: Callable[[], object]) -> None:
    """Put what the constant parts give in `run`, for one picture, in their places."""
    given: dict[str, Any] = {}
    with ExitStack() as hooks:
        for name in constant_parts(network):

            def keep(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                given[name] = output

            hooks.callback(network.get_submodule(name).register_forward_hook(keep).remove)
        run()
    for name, output in given.items():
        alone = isinstance(output, Tensor)
        network.set_submodule(name, Folded((output,) if alone else tuple(output), alone))


class Patches(nn.Module):
    """A `PatchEmbed` with the positions of the sizes that are exported, and of no others."""

    def __init__(self, embed: PatchEmbed, sides: Iterable[int]) -> None:
        super().__init__()
        self.proj, self.patch_size = embed.proj, embed.patch_size
        for side in sides:
            self.register_buffer(f"positions{side}", embed.cropped_pos_embed(side, side).clone())

    def forward(self, latent: Tensor) -> Tensor:
        tokens = self.proj(latent).flatten(2).transpose(1, 2)
        return tokens + getattr(self, f"positions{latent.shape[-1]}")


class Rotations(nn.Module):
    """A `FluxPosEmbed`'s cosines and sines, by the number of tokens; float32 also in a half module."""

    def __init__(self, tables: dict[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.tables[len(ids)]


@torch.no_grad()
def bake_positions(network: Any, sides: Iterable[int], ids: Callable[[int], Tensor]) -> None:
    """Keep the positions of latents of these sides alone; `ids`: FLUX's, of such a latent with the prompt."""
    embed = getattr(network, "pos_embed", None)
    if isinstance(embed, PatchEmbed) and embed.pos_embed_max_size:
        network.pos_embed = Patches(embed, sides)
    elif isinstance(embed, FluxPosEmbed):
        named = [ids(side) for side in sides]
        network.pos_embed = Rotations({len(one): embed(one) for one in named})
