"""Bases of every kind of backbone: the real classes with a few channels each, random, made in a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

WORDS = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>"]
ROOM = 12
"""Tokens of a CLIP here."""


def make_sd3(folder: Path) -> None:
    """Stable Diffusion 3.5's layout: three text encoders, dual attention, 16 channels with a shift."""
    torch.manual_seed(3)
    SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=16,
        pos_embed_max_size=24, dual_attention_layers=(0,), qk_norm="rms_norm",
    ).save_pretrained(folder / "transformer")  # fmt: skip
    write_kl(folder)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    write_clip(folder, "", projection_dim=8)
    write_clip(folder, "_2", projection_dim=8)
    write_t5(folder, "_3", width=32)


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


def write_clip(folder: Path, suffix: str, projection_dim: int) -> None:
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=ROOM, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        projection_dim=projection_dim,
    )  # fmt: skip
    CLIPTextModelWithProjection(config).save_pretrained(folder / f"text_encoder{suffix}")
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


MAKERS: dict[str, Callable[[Path], None]] = {"sd3": make_sd3}


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
