"""Where a base lies: a local folder in the diffusers layout, or a model of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from tudsr_runtime.errors import BundleError
from tudsr_runtime.files import file_sha256

PARTS = (
    "unet", "vae", "scheduler", "prompt", "text_encoder", "tokenizer",
    "transformer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3",
)  # fmt: skip
"""In the order in which `base_sha256` takes them, which must stay."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
DOWNLOADED = [
    "*/*.json", "tokenizer*/*.txt", "tokenizer*/*.model", "prompt/*.safetensors",
    "text_encoder*/model.safetensors", "text_encoder*/model-*.safetensors",
    "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    "transformer/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model-*.safetensors",
]  # fmt: skip
VARIANT = re.compile(r"\.(fp16|fp32|bf16|non_ema|ema_only)\b")


def find_base(base: str | Path) -> Path:
    """The folder of a base; one that is no local folder, but `owner/name`, is taken from the hub.

    Only what the generator reads is downloaded, into the hub's own cache. Raises BundleError (exit 5) where
    there is neither.
    """
    folder = Path(base).expanduser()
    if folder.is_dir() or not HUB_ID.fullmatch(str(base)):
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(base), allow_patterns=DOWNLOADED))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{base}: no such folder, and not to be had from the Hugging Face hub: {error}",
            hint="download the model elsewhere and give its folder",
        ) from error


def base_name(base: str | Path) -> str:
    """What people call a base: the hub's `owner/name`, or the name of its folder."""
    folder = Path(base).expanduser()
    return folder.resolve().name if folder.is_dir() else str(base)


def base_sha256(folder: Path) -> str:
    """One hash of a base: of the names and contents of the configs, weights and prompt that are loaded.

    Other versions of the weights (half precision, other formats) may lie beside them.
    """
    digest = hashlib.sha256()
    for file in (f for part in PARTS for f in _loaded_files(folder / part)):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
        digest.update(bytes.fromhex(file_sha256(file)))
    return digest.hexdigest()


def _loaded_files(part: Path) -> list[Path]:
    files = sorted(f for f in part.rglob("*") if f.is_file() and not VARIANT.search(f.name))
    weights = {".safetensors"} if any(f.suffix == ".safetensors" for f in files) else {".bin"}
    return [f for f in files if f.suffix in {".json", ".txt", *weights}]
