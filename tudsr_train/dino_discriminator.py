"""The paper's discriminator: a frozen DINOv3 looks at the picture, a head scores each level (Eq. 3 and 4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from tudsr_runtime.errors import TrainingError
from tudsr_train.diff_augment import diff_augment, policies
from tudsr_train.discriminator import RANDOM, Discriminator, DiscriminatorConfig
from tudsr_train.discriminator_heads import make_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of pictures in [0, 1]: what DINOv3's web images were normalised with."""
DEFAULT_WEIGHTS = {
    "dinov3": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    "dinov3-convnext": "facebook/dinov3-convnext-large-pretrain-lvd1689m",
}
DEFAULT_LAYERS = {"dinov3": (3, 6, 9), "dinov3-convnext": (1, 2, 3)}
WHERE_TO_GET = (
    "accept the DINOv3 licence on the model's hub page and log in with `hf auth login`, or set "
    "`discriminator.weights` to a folder that holds config.json and model.safetensors"
)


class DinoDiscriminator(Discriminator):
    """D over pictures x (B, 3, R, R) in [-1, 1]: DiffAugment, ImageNet normalisation, DINOv3, heads.

    No resize: R must be a multiple of the coarsest cell (16 pixels for the ViT), and large enough for the
    head; TrainingError otherwise.
    """

    space = "pixel"
    backbone: PreTrainedModel
    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: PreTrainedModel, strides: tuple[int, ...], head: str, diff_augment: str
    ) -> None:
        super().__init__()
        self.backbone, self.strides, self.policies = backbone, strides, policies(diff_augment)
        levels = list(zip(backbone.channels, strides, strict=True))
        heads = [make_head(head, channels, stride) for channels, stride in levels]
        self.heads = nn.ModuleList(heads)
        self.least = max(stride * made.smallest for stride, made in zip(strides, heads, strict=True))
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.rng: torch.Generator | None = None
        """What DiffAugment draws from; None is torch's own generator, which checkpoints hold."""

    @classmethod
    def build(cls, config: DiscriminatorConfig) -> Self:
        """From pretrained weights, or untrained ones where `random` is asked for by name."""
        layers = config.layers or DEFAULT_LAYERS[config.kind]
        backbone = _vit(config, layers) if config.kind == "dinov3" else _convnext(config, layers)
        if config.kind == "dinov3":
            strides = (backbone.config.patch_size,) * len(layers)
        else:
            strides = tuple(2 ** (stage + 1) for stage in layers)
        return cls(backbone, strides, config.head, config.diff_augment)

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """{f_x^l} of Eq. (3): (B, C_l, R / stride_l, R / stride_l), under the final LayerNorm for a ViT."""
        normalised = (x * 0.5 + 0.5 - self.mean) / self.std
        return tuple(self.backbone(normalised).feature_maps)

    def forward(self, sample: Tensor) -> list[Tensor]:
        self._check(sample)
        with torch.autocast(sample.device.type, enabled=False):
            x = diff_augment(sample.to(self.mean.dtype), self.policies, self.rng)
            return [head(f) for head, f in zip(self.heads, self.features(x), strict=True)]

    def _check(self, x: Tensor) -> None:
        coarsest = max(self.strides)
        for side in x.shape[-2:]:
            if side % coarsest or side < self.least:
                raise TrainingError(
                    f"the discriminator cannot look at {x.shape[-1]} x {x.shape[-2]} pixels: it needs sides "
                    f"that are multiples of {coarsest} and at least {self.least}",
                    hint="choose another R, or another discriminator.head",
                )


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
    try:
        return kind.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"no DINOv3 weights at {where}: {str(error).splitlines()[0]}", hint=WHERE_TO_GET
        ) from error


def _pretrained(kind: Any, backbone_config: Any, config: DiscriminatorConfig) -> PreTrainedModel:
    where = config.weights or DEFAULT_WEIGHTS[config.kind]
    try:
        with _without_a_report():
            backbone, info = kind.from_pretrained(
                where, config=backbone_config, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"the DINOv3 weights at {where} cannot be loaded: {str(error).splitlines()[0]}", hint=WHERE_TO_GET
        ) from error
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
