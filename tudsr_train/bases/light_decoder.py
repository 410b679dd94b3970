"""A small decoder that stands in for that of an `AutoencoderKL`, which is most of a restorer's arithmetic.

    DECODER/config.json, diffusion_pytorch_model.safetensors    diffusers' own two files
    DECODER/tudsr_decoder.json                                  `DecoderRecord`

It takes the scaled latent z_H, as the backbone gives it, so that no convolution of the base stands before it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusers import AutoencoderKL, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Decoder, DecoderTiny
from torch import Tensor, nn

from tudsr_runtime.errors import BundleError, TrainingError
from tudsr_runtime.typed import read_typed
from tudsr_train.foreign import misread, read_config, require_modest
from tudsr_train.generator import Generator

DECODER_RECORD_FILE = "tudsr_decoder.json"
SIZES = ("half", "tiny")
TINY_WIDTH = 64
"""Channels of every level of TAESD's decoder."""
TINY_BLOCKS = 3
"""Blocks of every level of it but the finest, which has one."""


@dataclass(frozen=True)
class DecoderRecord:
    """What a light decoder stands in for; `tudsr_decoder.json` in its folder, read by the export."""

    base_sha256: str
    """`Generator.base_sha256` of the base whose decoder it was distilled from."""
    base: str = ""
    """Name or hub id of that base, for people."""


class LightDecoder(ModelMixin, ConfigMixin):
    """D' with D'(z_H) close to D(z_H / s): (B, C, h, w), scaled, to (B, 3, H, W) around [-1, 1], not clamped.

    Args:
        size: "half" is `AutoencoderKL`'s decoder, "tiny" that of `AutoencoderTiny` (TAESD, Bohan 2023).
        latent_channels: C.
        block_out_channels: channels of each level, the finest first; every further level halves the side.
        layers_per_block, norm_num_groups: of "half" alone.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        size: str = "half",
        latent_channels: int = 4,
        block_out_channels: tuple[int, ...] = (64, 128, 256, 256),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size is {size!r}; {' and '.join(SIZES)} are known")
        channels, levels = tuple(block_out_channels), len(block_out_channels)
        self.decoder: nn.Module
        if size == "tiny":
            blocks = (TINY_BLOCKS,) * (levels - 1) + (1,)
            self.decoder = DecoderTiny(latent_channels, 3, blocks, channels[::-1], 2, "relu", "nearest")
        else:
            self.decoder = Decoder(
                latent_channels,
                3,
                ("UpDecoderBlock2D",) * levels,
                channels,
                layers_per_block,
                norm_num_groups,
            )

    def forward(self, z_H: Tensor) -> Tensor:
        x_H: Tensor = self.decoder(z_H)
        return x_H


def light_decoder(G: Generator, size: str, width: float = 0.5) -> LightDecoder:
    """A fresh one for the base of G, drawn by torch's seed.

    Args:
        size: "half" or "tiny", of `LightDecoder`.
        width: channels of a "half" one as a share of the base's own; "tiny" has TAESD's 64 throughout.

    Raises:
        TrainingError: the base's autoencoder is no `AutoencoderKL`, or nothing is left of its channels.
    """
    vae = G.vae
    if not isinstance(vae, AutoencoderKL):
        raise TrainingError(
            f"{G.base_id}: its autoencoder is a {type(vae).__name__}, whose decoder is light already",
            hint="a base with an AutoencoderKL, such as Stable Diffusion 2.1-base",
        )
    full = tuple(vae.config.block_out_channels)
    if size == "tiny":
        return LightDecoder("tiny", vae.config.latent_channels, (TINY_WIDTH,) * len(full))
    channels = tuple(int(width * channel) for channel in full)
    if min(channels) < 1:
        raise TrainingError(f"model.width {width:g} leaves no channel of {min(full)}")
    groups = math.gcd(vae.config.norm_num_groups, *channels)
    return LightDecoder(size, vae.config.latent_channels, channels, vae.config.layers_per_block, groups)


def save_light_decoder(decoder: LightDecoder, folder: Path, record: DecoderRecord) -> None:
    """Write it with its record into a folder that is there."""
    decoder.save_pretrained(folder)
    (folder / DECODER_RECORD_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n")


def load_light_decoder(folder: Path, G: Generator) -> LightDecoder:
    """The one in a folder, float32 and frozen, for the base G.

    Raises:
        BundleError: there is none, it is damaged, or it was distilled from another base.
    """
    path = folder / DECODER_RECORD_FILE
    if not path.is_file():
        raise BundleError(
            f"{folder}: no light decoder here ({DECODER_RECORD_FILE} is missing)",
            hint="the folder that `tudsr train decoder` wrote",
        )
    with misread(f"{folder}: the light decoder cannot be read"):
        record = read_typed(DecoderRecord, read_config(path), ValueError, whole="the record", defaults=True)
        require_modest(read_config(folder / "config.json"), "config.json")
        decoder, found = LightDecoder.from_pretrained(folder, output_loading_info=True)
        if found["missing_keys"] or found["unexpected_keys"]:
            raise ValueError(f"its weights are not those of its config: {found}")
    if record.base_sha256 != G.base_sha256:
        raise BundleError(
            f"{folder}: the light decoder was distilled from base {record.base_sha256[:12]}, "
            f"but {G.base_id} is {G.base_sha256[:12]}",
            hint="give the base that it was distilled from",
        )
    fits = decoder.config.latent_channels, 2 ** (len(decoder.config.block_out_channels) - 1)
    if fits != (G.vae.config.latent_channels, G.pixels_per_cell):
        raise BundleError(f"{folder}: the light decoder does not fit the latents of {G.base_id}")
    decoder.requires_grad_(False)
    return decoder.eval().float()
