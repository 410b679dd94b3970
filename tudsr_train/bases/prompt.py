"""The fixed prompt c of a base: stored beside it, read from a file, or encoded by the base's text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tudsr_runtime.errors import BundleError, TrainingError
from tudsr_train.backbones.backbone import CONDITIONS, PROMPT, Backbone, Conditions
from tudsr_train.foreign import misread, without_bars

if TYPE_CHECKING:
    from diffusers import ModelMixin

PROMPT_FILE = "prompt/prompt_embeds.safetensors"


def prompt_of(folder: Path, prompt: str = "") -> Tensor:
    """Embedding c of the fixed prompt, float32 (1, L, D).

    A stored embedding (`prompt/prompt_embeds.safetensors`) stands for the empty prompt; else the base's own
    text encoder encodes `prompt` once, padded to its full length, and is dropped.

    Raises BundleError (exit 5) where there is neither, TrainingError (exit 10) where the prompt is too long.
    """
    stored, encoder_config = folder / PROMPT_FILE, folder / "text_encoder" / "config.json"
    if stored.is_file() and not (prompt and encoder_config.is_file()):
        if prompt:
            raise BundleError(f"{folder}: its prompt is stored ({PROMPT_FILE}); it cannot encode {prompt!r}")
        return read_prompt(stored)
    if not encoder_config.is_file():
        raise BundleError(
            f"{folder}: neither {PROMPT_FILE} nor text_encoder/ is there, so the prompt is unknown"
        )
    return encode_prompt(folder, prompt)


def conditions_of(folder: Path, backbone: Backbone, network: ModelMixin, prompt: str = "") -> Conditions:
    """c of the fixed prompt, as `prompt_of` finds it, but all that this kind of backbone takes."""
    stored, encoder_config = folder / PROMPT_FILE, folder / "text_encoder" / "config.json"
    if stored.is_file() and not (prompt and encoder_config.is_file()):
        if prompt:
            raise BundleError(f"{folder}: its prompt is stored ({PROMPT_FILE}); it cannot encode {prompt!r}")
        return read_conditions(stored)
    if not encoder_config.is_file():
        raise BundleError(
            f"{folder}: neither {PROMPT_FILE} nor text_encoder/ is there, so the prompt is unknown"
        )
    return encode_conditions(folder, backbone, network, prompt)


def encode_conditions(folder: Path, backbone: Backbone, network: ModelMixin, prompt: str) -> Conditions:
    """c of `prompt` by the text encoders of the base in `folder`. Raises BundleError (exit 5) where it has
    none, TrainingError (exit 10) where the prompt is too long."""
    if not (folder / "text_encoder" / "config.json").is_file():
        raise BundleError(f"{folder}: there is no text_encoder/, so no prompt can be encoded")
    with misread(f"{folder}: the text encoder cannot be used"), without_bars(), torch.no_grad():
        return backbone.encode(folder, network, prompt)


def encode_prompt(folder: Path, prompt: str) -> Tensor:
    """Embedding of `prompt` by the text encoder of the base in `folder`, as `prompt_of` describes it.

    Raises BundleError (exit 5) where the base has no text encoder.
    """
    if not (folder / "text_encoder" / "config.json").is_file():
        raise BundleError(f"{folder}: there is no text_encoder/, so no prompt can be encoded")
    with misread(f"{folder}: the text encoder cannot be used"), without_bars():
        return _encode(folder, prompt)


def _encode(folder: Path, prompt: str) -> Tensor:
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    # A tokenizer that names no length has one of 1e30.
    room = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer(prompt, padding="max_length", max_length=room, return_tensors="pt")
    if tokens.input_ids.shape[1] > room:
        raise TrainingError(f"the prompt has {tokens.input_ids.shape[1]} tokens, but {room} fit")
    with torch.no_grad():
        embedding: Tensor = encoder(tokens.input_ids)[0]
    return embedding


def read_prompt(file: Path) -> Tensor:
    """An embedding c, float32 (1, L, D), from a safetensors file that holds one tensor.

    Raises BundleError (exit 5) where the file is missing, damaged, or holds several tensors.
    """
    c = read_conditions(file)
    if len(c) != 1:
        raise BundleError(f"{file}: expected one tensor (1, L, D), found {len(c)}: {sorted(c)}")
    return c[PROMPT]


def read_conditions(file: Path) -> Conditions:
    """c, float32, from a safetensors file: one tensor (1, L, D) of any name, or several of those that
    diffusers' pipelines have: prompt_embeds (1, L, D) and pooled_prompt_embeds (1, P).

    Raises BundleError (exit 5) where the file is missing, damaged, or holds other tensors.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{file}: no prompt embedding can be read here: {error}") from error
    if len(tensors) == 1:
        tensors = {PROMPT: next(iter(tensors.values()))}
    if not tensors or not {*tensors} <= {*CONDITIONS}:
        raise BundleError(f"{file}: expected one tensor (1, L, D), found {len(tensors)}: {sorted(tensors)}")
    for name, value in tensors.items():
        kind = "(1, L, D)" if name == PROMPT else "(1, P)"
        if value.ndim != kind.count(",") + 1 or len(value) != 1 or not value.numel():
            what = "the prompt embedding" if name == PROMPT else name
            raise BundleError(f"{file}: {what} has shape {tuple(value.shape)}, not {kind}")
    return {name: value.float() for name, value in tensors.items()}


def save_prompt(folder: Path, prompt_embeds: Tensor | Mapping[str, Tensor]) -> None:
    """Store the prompt's embedding (1, L, D), or all of c by name, where `prompt_of` finds it."""
    path = folder / PROMPT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    c = {PROMPT: prompt_embeds} if isinstance(prompt_embeds, Tensor) else prompt_embeds
    save_file({name: value.contiguous() for name, value in c.items()}, path)
