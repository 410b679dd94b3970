"""The text encoders of a base, loaded to encode one prompt and dropped again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tudsr_runtime.errors import TrainingError


def clip_encoder(folder: Path, suffix: str, projected: bool = False) -> Any:
    """A CLIP text model of a base, float32; `projected`: with the projection that makes a pooled prompt."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind.from_pretrained(folder / f"text_encoder{suffix}", dtype=torch.float32).eval()


def clip_tokenizer(folder: Path, suffix: str) -> Any:
    """The tokenizer beside it."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}")


def large_encoder(folder: Path, suffix: str) -> Any:
    """A T5 encoder or a Gemma of a base, bfloat16: their authors run them so, and 4.8 billion weights of
    float32 are 19 GB."""
    from transformers import AutoConfig, AutoModel, T5EncoderModel

    place = folder / f"text_encoder{suffix}"
    kind = T5EncoderModel if AutoConfig.from_pretrained(place).model_type == "t5" else AutoModel
    return kind.from_pretrained(place, dtype=torch.bfloat16).eval()


def large_tokenizer(folder: Path, suffix: str) -> Any:
    """The tokenizer beside it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / f"tokenizer{suffix}")


def require_room(tokenizer: Any, prompt: str, room: int) -> None:
    """TrainingError where a prompt has more tokens than the encoder reads; diffusers would cut it."""
    count = len(tokenizer(prompt).input_ids)
    if count > room:
        raise TrainingError(f"the prompt has {count} tokens, but {room} fit")
