"""The paper's discriminator: a frozen DINOv3 looks at the picture, a head scores each level (Eq. 3 and 4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import torch

from tudsr_runtime.errors import TrainingError
from tudsr_train.discriminators.base import DiscriminatorConfig
from tudsr_train.discriminators.pictures import PictureDiscriminator
from tudsr_train.foreign import misread, without_bars
from tudsr_train.vgg16 import RANDOM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_WEIGHTS = {
    "dinov3": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    "dinov3-convnext": "facebook/dinov3-convnext-large-pretrain-lvd1689m",
}
DEFAULT_LAYERS = {"dinov3": (3, 6, 9), "dinov3-convnext": (1, 2, 3)}
WHERE_TO_GET = (
    "accept the DINOv3 licence on the model's hub page and log in with `hf auth login`, or set "
    "`discriminator.weights` to a folder that holds config.json and model.safetensors"
)


class DinoDiscriminator(PictureDiscriminator):
    """D over pictures whose backbone is a DINOv3."""

    @classmethod
    def build(cls, config: DiscriminatorConfig) -> Self:
        """Build it from pretrained weights, or untrained ones where `random` is asked for by name."""
        layers = config.layers or DEFAULT_LAYERS[config.kind]
        backbone = _vit(config, layers) if config.kind == "dinov3" else _convnext(config, layers)
        if config.kind == "dinov3":
            strides = (backbone.config.patch_size,) * len(layers)
        else:
            strides = tuple(2 ** (stage + 1) for stage in layers)
        return cls(backbone, strides, config)


def _vit(config: DiscriminatorConfig, layers: tuple[int, ...]) -> PreTrainedModel:
    """DINOv3-ViT, cut after its last scored block: what follows would change nothing."""
    from transformers import DINOv3ViTBackbone, DINOv3ViTConfig

    if config.weights == RANDOM:
        own = DINOv3ViTConfig(
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_attention_heads=config.width // 32,
            num_hidden_layers=max(layers),
            num_register_tokens=4,
            out_indices=_checked(layers, max(layers), "blocks"),
        )
        return DINOv3ViTBackbone(own)
    own = _read_config(DINOv3ViTConfig, config)
    _checked(layers, own.num_hidden_layers, "blocks")
    own.num_hidden_layers = max(layers)
    return _pretrained(DINOv3ViTBackbone, DINOv3ViTConfig(**_settings(own), out_indices=list(layers)), config)


def _convnext(config: DiscriminatorConfig, layers: tuple[int, ...]) -> PreTrainedModel:
    """DINOv3-ConvNeXt, cut after its last scored stage."""
    from transformers import DINOv3ConvNextBackbone, DINOv3ConvNextConfig

    if config.weights == RANDOM:
        widths = [config.width * 2**stage // 4 for stage in range(max(layers))]
        own = DINOv3ConvNextConfig(
            hidden_sizes=widths,
            depths=[1] * len(widths),
            layer_scale_init_value=1.0,
            out_indices=_checked(layers, 4, "stages"),
        )
        return DINOv3ConvNextBackbone(own)
    own = _read_config(DINOv3ConvNextConfig, config)
    _checked(layers, len(own.depths), "stages")
    own.hidden_sizes, own.depths = own.hidden_sizes[: max(layers)], own.depths[: max(layers)]
    return _pretrained(
        DINOv3ConvNextBackbone, DINOv3ConvNextConfig(**_settings(own), out_indices=list(layers)), config
    )


def _checked(layers: tuple[int, ...], most: int, what: str) -> list[int]:
    if list(layers) != sorted(set(layers)) or layers[0] < 1 or layers[-1] > most:
        raise TrainingError(
            f"discriminator.layers is {list(layers)}; expected ascending numbers of {what}, 1 to {most}"
        )
    return list(layers)


def _settings(config: Any) -> dict[str, Any]:
    """A transformers config's settings without what depends on the number of layers or names the model."""
    dropped: tuple[str, ...] = ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices")
    dropped += ("model_type", "transformers_version", "architectures", "dtype")
    return {key: value for key, value in config.to_dict().items() if key not in dropped}


def _read_config(kind: Any, config: DiscriminatorConfig) -> Any:
    where = config.weights or DEFAULT_WEIGHTS[config.kind]
    with misread(f"no DINOv3 weights at {where}", TrainingError, hint=WHERE_TO_GET):
        return kind.from_pretrained(where)


def _pretrained(kind: Any, backbone_config: Any, config: DiscriminatorConfig) -> PreTrainedModel:
    where = config.weights or DEFAULT_WEIGHTS[config.kind]
    said = f"the DINOv3 weights at {where} cannot be loaded"
    with misread(said, TrainingError, hint=WHERE_TO_GET), without_bars(), _without_a_report():
        backbone, info = kind.from_pretrained(
            where, config=backbone_config, dtype=torch.float32, output_loading_info=True
        )
    absent = sorted(info["missing_keys"])
    if absent:
        raise TrainingError(f"{where}: {len(absent)} weights are missing (first: {absent[0]})")
    return backbone


@contextlib.contextmanager
def _without_a_report() -> Iterator[None]:
    """transformers would list the blocks that are left out on purpose; what is missing is checked here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
