"""Gradient checkpointing, by part: activations are computed again in the backward, and not kept meanwhile.

Chen et al. 2016. diffusers does it for its networks and for `AutoencoderKL`. For a DC-AE it does not, and an
`AutoencoderTiny` then leaves out the scale of its input, so that these are wrapped here, block by block.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

BACKBONE, ENCODER, DECODER = "backbone", "encoder", "decoder"
PARTS = (BACKBONE, ENCODER, DECODER)
"""What can be chosen: B, E and D of Eq. (2)."""


def recompute(network: Any, vae: Any, parts: Collection[str]) -> None:
    """Let these parts of a generator compute their activations again. One that has hardly any, such as nano's
    decoder, keeps them.

    Args:
        network, vae: diffusers models.
        parts: names of `PARTS`.
    """
    if BACKBONE in parts and _supported(network):
        network.enable_gradient_checkpointing()
    from diffusers import AutoencoderKL

    coders = {name: getattr(vae, name) for name in (ENCODER, DECODER) if hasattr(vae, name)}
    if isinstance(vae, AutoencoderKL):
        vae.enable_gradient_checkpointing()
        for name, coder in coders.items():
            _switch(coder, name in parts)
        return
    for name, coder in coders.items():
        if name in parts:
            _wrap(coder)


def _supported(model: Any) -> bool:
    return bool(getattr(model, "_supports_gradient_checkpointing", False))


def _switch(coder: Any, on: bool) -> None:
    for module in coder.modules():
        if hasattr(module, "gradient_checkpointing"):
            setattr(module, "gradient_checkpointing", on)  # noqa: B010, not a tensor of the module's


def _wrap(coder: nn.Module) -> None:
    """Compute the blocks of an encoder or decoder again, each on its own."""
    stacks = (*getattr(coder, "down_blocks", ()), *getattr(coder, "up_blocks", ()))
    for stack in stacks or (getattr(coder, "layers", None),):
        for block in stack if isinstance(stack, nn.Sequential) else ():
            if next(block.children(), None) is not None:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
