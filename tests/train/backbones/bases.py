"""Bases of every kind of backbone: the real classes with a few channels each, random, made in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

WORDS = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>"]
ROOM = 12
"""Tokens of a CLIP here."""


def make_sd3(folder: Path) -> None:
    """Stable Diffusion 3.5's layout: three text encoders, dual attention, 16 channels with a shift."""
    torch.manual_seed(3)
    SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=16,
        pos_embed_max_size=32, dual_attention_layers=(0,), qk_norm="rms_norm",
    ).save_pretrained(folder / "transformer")  # fmt: skip
    write_kl(folder)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    write_clip(folder, "", projection_dim=8)
    write_clip(folder, "_2", projection_dim=8)
    write_t5(folder, "_3", width=32)


def make_sana(folder: Path) -> None:
    """Sana's layout: a Gemma, linear attention, a DC-AE; four pixels a cell in the place of 32."""
    torch.manual_seed(4)
    SanaTransformer2DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12,
        sample_size=16,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    blocks = {"block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 16, 16)}
    sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in blocks.items()}
    AutoencoderDC(
        latent_channels=8, attention_head_dim=8, encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1), encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)), scaling_factor=0.41407, **sides,
    ).save_pretrained(folder / "vae")  # fmt: skip
    DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ).save_pretrained(folder / "scheduler")
    config = Gemma2Config(
        vocab_size=8, hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=6, pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    Gemma2Model(config).save_pretrained(folder / "text_encoder")
    write_words(folder / "tokenizer")


def make_flux(folder: Path) -> None:
    """FLUX.1-dev's layout: packed tokens, rotated by their place, guidance embedded; a CLIP and a T5. With a
    small autoencoder of 16 channels (TAEF1)."""
    torch.manual_seed(5)
    FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    ).save_pretrained(folder / "transformer")  # fmt: skip
    write_tiny(folder, 16)
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_pretrained(
        folder / "scheduler"
    )
    write_clip(folder, "", projection_dim=None)
    write_t5(folder, "_2", width=16)


def make_sdxl(folder: Path) -> None:
    """SDXL-Turbo's layout: two encoders, a pooled prompt and sizes as conditions. A small autoencoder."""
    torch.manual_seed(6)
    UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), use_linear_projection=True,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, norm_num_groups=8,
        addition_embed_type="text_time", addition_time_embed_dim=4, transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 4 + 8,
    ).save_pretrained(folder / "unet")  # fmt: skip
    write_tiny(folder, 4)
    EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    ).save_pretrained(folder / "scheduler")
    write_clip(folder, "", projection_dim=None)
    write_clip(folder, "_2", projection_dim=8)


def write_kl(folder: Path) -> None:
    """The autoencoder of SD 3 and FLUX: shifted, without quant convolutions; two pixels a cell."""
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, layers_per_block=1, latent_channels=16,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609,
    )  # fmt: skip
    # latents of about 1, as after training
    vae.encoder.conv_out.weight.data *= 10
    vae.save_pretrained(folder / "vae")


def write_tiny(folder: Path, channels: int) -> None:
    """The small autoencoder that may take a large one's place (TAESD, TAEF1); two pixels a cell."""
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=channels,
    ).save_pretrained(folder / "vae")  # fmt: skip


def write_clip(folder: Path, suffix: str, projection_dim: int | None) -> None:
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=ROOM, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        projection_dim=projection_dim or 8,
    )  # fmt: skip
    kind = CLIPTextModelWithProjection if projection_dim else CLIPTextModel
    kind(config).save_pretrained(folder / f"text_encoder{suffix}")
    tokenizer = folder / f"tokenizer{suffix}"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    settings = {"model_max_length": ROOM, "pad_token": WORDS[1], "tokenizer_class": "CLIPTokenizer"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))


def write_t5(folder: Path, suffix: str, width: int) -> None:
    config = T5Config(vocab_size=8, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder / f"text_encoder{suffix}")
    write_words(folder / f"tokenizer{suffix}")


def write_words(folder: Path) -> None:
    """A tokenizer of whole words, in the one file that fast tokenizers have."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {
    "sd3": make_sd3, "sana": make_sana, "flux": make_flux, "sdxl": make_sdxl,
}  # fmt: skip


def make_base(kind: str, folder: Path) -> Path:
    """A base in a new folder of that name."""
    folder.mkdir(parents=True)
    MAKERS[kind](folder)
    return folder


def disturb(generator: nn.Module, std: float = 0.2) -> None:
    """Make the adapters that are attached do something: B is not zero."""
    for name, parameter in generator.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=std)
