"""What the generator has to know of an architecture: one small class each, found by diffusers' class name.

A `Backbone` owns no weights. It takes the diffusers model, `network`, as an argument, so that training,
adapters and export keep handling that model itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from tudsr_runtime.errors import BundleError

if TYPE_CHECKING:
    from diffusers import ModelMixin

Conditions = dict[str, Tensor]
PROMPT, POOLED = "prompt_embeds", "pooled_prompt_embeds"
CONDITIONS = (PROMPT, POOLED)
"""c of Eq. (2), by the names of diffusers' pipelines: the prompt's tokens (1, L, D) and, for some, one vector
of the whole prompt (1, P)."""


class Backbone:
    """B(z, t, c) of one architecture, and what else differs between architectures."""

    name: ClassVar[str]
    """diffusers' class; `_class_name` in the network's config.json."""
    part: ClassVar[str]
    """What people call the network."""
    folder: ClassVar[str]
    """Where the network lies in a base."""
    component: ClassVar[str]
    """What the exported network is called in a bundle."""
    output_layer: ClassVar[str]
    """Its last layer, which is linear: what it is scaled by, the prediction is."""
    lora_targets: ClassVar[Mapping[str, tuple[str, ...]]]
    """Ends of the names of the layers that get a LoRA, by `lora.targets`."""
    time_unit: ClassVar[float] = 1000.0
    """What the network is told of a flow's sigma of 1."""

    def load(self, folder: Path) -> ModelMixin:
        """The network in a base's folder, float32. ValueError where weights are missing."""
        import diffusers

        from tudsr_train.bases.codec import load_whole

        return load_whole(getattr(diffusers, self.name), folder / self.folder)

    def channels(self, network: ModelMixin) -> tuple[int, int]:
        """Channels of the latent that it takes, and of what it gives."""
        config = network.config
        return config.in_channels, config.get("out_channels") or config.in_channels

    def cells(self, network: ModelMixin) -> int:
        """What a latent's sides must be multiples of."""
        return int(network.config.patch_size)

    def most_cells(self, network: ModelMixin) -> int | None:  # noqa: ARG002 - most have no limit
        """The longest side that a latent may have; None for any."""
        return None

    def widths(self, network: ModelMixin) -> dict[str, int]:
        """What c must hold, and the last dimension of each."""
        raise NotImplementedError

    def refuse(self, network: ModelMixin) -> None:
        """ValueError where a network of this class needs what a one-step restorer does not have."""

    def require(self, c: Mapping[str, Tensor], network: ModelMixin, base_id: str) -> None:
        """BundleError where c is not what the network takes."""
        for key, width in self.widths(network).items():
            if key not in c:
                raise BundleError(
                    f"{base_id}: the prompt lacks {key}, which a {self.name} takes",
                    hint="a file with " + " and ".join(self.widths(network)),
                )
            known = (1, "any length", width) if key == PROMPT else (1, width)
            shape = tuple(c[key].shape)
            if len(shape) != len(known) or shape[0] != 1 or shape[-1] != width:
                what = "the prompt embedding" if key == PROMPT else key
                raise BundleError(
                    f"{what} has shape {shape}, but {base_id or 'the base'} attends to "
                    f"({', '.join(map(str, known))})"
                )

    def predict(self, network: ModelMixin, z: Tensor, t: Tensor, c: Conditions) -> Tensor:
        """B(z, t, c), shape of z.

        Args:
            z: (B, C, h, w).
            t: (B,), as `Noising.told` tells it.
            c: of one picture; it serves every picture of the batch.
        """
        raise NotImplementedError

    def ids(self, network: ModelMixin, c: Conditions, side: int) -> Tensor:
        """The positions of prompt and picture where they are told, for a latent of side x side cells."""
        raise NotImplementedError

    def encode(self, folder: Path, network: ModelMixin, prompt: str) -> Conditions:
        """c of a text, by the base's own encoders and diffusers' own pipeline, float32."""
        raise NotImplementedError


def expanded(value: Tensor, z: Tensor) -> Tensor:
    """A condition of one picture, for every picture of a batch."""
    return value.expand(len(z), *value.shape[1:])


class Transformer(Backbone):
    """What the transformers have in common."""

    part = folder = component = "transformer"
    output_layer = "proj_out"


def cut_in_the_middle(network: ModelMixin) -> ModelMixin:
    """A transformer without the second half of its blocks, in place, for `Tokens`."""
    kinds = ("transformer_blocks", "single_transformer_blocks")
    blocks = [block for kind in kinds for block in getattr(network, kind, ())]
    left = max(1, len(blocks) // 2)
    for kind in kinds:
        if hasattr(network, kind):
            own = getattr(network, kind)
            setattr(network, kind, own[:left])
            left -= min(left, len(own))
    return network


class Tokens:
    """Within its context, keeps what a transformer's blocks hand to its last norm: (B, tokens, D)."""

    found: Tensor

    def __init__(self, network: nn.Module) -> None:
        self._norm = network.get_submodule("norm_out")

    def __enter__(self) -> Tokens:
        self._hook = self._norm.register_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _keep(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.found = inputs[0]
