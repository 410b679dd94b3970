"""LoRA adapters of the generator's UNet, as standard PEFT folders with a small record beside them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from peft import LoraConfig, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tudsr_runtime.errors import BundleError
from tudsr_train.generator import Generator

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
RECORD_FILE = "tudsr.json"
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterRecord:
    """What an adapter was trained for; `tudsr.json` in its folder, read by the export."""

    stage: int
    """1 or 2."""
    timestep: int
    """t_1 or t_2."""
    factor: int
    """Largest upsampling factor trained for: M in stage 1, N in stage 2."""
    base_sha256: str
    """`Generator.base_sha256` of the base it was trained on."""
    prompt_sha256: str
    """`prompt_sha256` of the prompt embedding it was trained with."""


def prompt_sha256(prompt_embeds: Tensor) -> str:
    """Hash of an embedding's float32 values and shape."""
    values = prompt_embeds.detach().float().cpu().numpy()
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


def add_adapter(generator: Generator, name: str, rank: int, target_modules: tuple[str, ...]) -> None:
    """Attach a fresh trainable LoRA to the UNet and make it the active one; it starts as an exact identity.

    alpha = rank (scaling 1), A gaussian, B zero. Afterwards the UNet's `set_adapter` switches adapters.
    """
    config = LoraConfig(
        r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(target_modules)
    )
    with _several_adapters_are_meant():
        generator.unet.add_adapter(config, adapter_name=name)
    generator.unet.set_adapter(name)


@contextlib.contextmanager
def _several_adapters_are_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        yield


def adapter_parameters(generator: Generator, name: str) -> dict[str, nn.Parameter]:
    """The adapter's own weights, by name; by name and not by requires_grad, which `set_adapter` flips."""
    return {key: p for key, p in generator.unet.named_parameters() if f".{name}." in key and "lora_" in key}


def save_adapter(generator: Generator, name: str, folder: Path, record: AdapterRecord) -> None:
    """Write the adapter into `folder` (existing, empty): PEFT's two files and the record.

    `peft.PeftModel.from_pretrained(unet, folder)` loads it.
    """
    weights = get_peft_model_state_dict(generator.unet, adapter_name=name)
    save_file(
        {PEFT_PREFIX + key: value.detach().float().cpu().contiguous() for key, value in weights.items()},
        folder / WEIGHTS_FILE,
        metadata={"format": "pt"},
    )
    config: LoraConfig = generator.unet.peft_config[name]
    stored = config.to_dict() | {"inference_mode": True, "target_modules": sorted(config.target_modules)}
    (folder / CONFIG_FILE).write_text(json.dumps(stored, indent=2, default=str, sort_keys=True) + "\n")
    (folder / RECORD_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n")


def load_adapter(generator: Generator, folder: str | Path, name: str) -> AdapterRecord | None:
    """Attach the adapter in `folder` to the UNet as `name`, frozen and active.

    Returns its record, or None where the folder has none (an adapter from elsewhere). Raises BundleError
    (exit 5) where files are missing or damaged, the weights do not fit the UNet, or the record names
    another base.
    """
    folder = Path(folder)
    config, weights = read_peft(folder)
    record = read_record(folder)
    if record and record.base_sha256 != generator.base_sha256:
        raise BundleError(
            f"{folder}: the adapter was trained on base {record.base_sha256[:12]}, "
            f"but {generator.base_id} is {generator.base_sha256[:12]}",
            hint="give the base that the adapter was trained on",
        )
    attach(generator.unet, config, weights, name, folder)
    generator.unet.set_adapter(name)
    for parameter in adapter_parameters(generator, name).values():
        parameter.requires_grad_(False)
    return record


def read_record(folder: Path) -> AdapterRecord | None:
    """The record in an adapter folder, or None where there is none; BundleError where it is damaged."""
    path = folder / RECORD_FILE
    if not path.is_file():
        return None
    try:
        return AdapterRecord(**json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise BundleError(f"{path}: not a record of an adapter: {error}") from error


def attach(
    model: nn.Module, config: LoraConfig, weights: dict[str, Tensor], name: str, origin: Path | str
) -> None:
    """Add an adapter to a diffusers model as `name`, not active yet; `weights` have PEFT's keys, unprefixed.

    Raises BundleError (exit 5), which names `origin`, where a weight has no place or a place no weight.
    """
    try:
        with _several_adapters_are_meant():
            model.add_adapter(config, adapter_name=name)
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
    except (RuntimeError, ValueError) as error:
        raise BundleError(
            f"{origin}: the adapter does not fit the base: {str(error).splitlines()[0]}"
        ) from error
    missing = [key for key in result.missing_keys if f".{name}." in key]
    if result.unexpected_keys or missing:
        worst = [*result.unexpected_keys, *missing][0]
        raise BundleError(
            f"{origin}: the adapter does not fit the base: {len(result.unexpected_keys)} weights have no "
            f"place, {len(missing)} places have no weight (first: {worst})"
        )


def read_peft(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Config and weights (PEFT's keys, unprefixed) of a PEFT folder; BundleError where they cannot be read."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise BundleError(f"{folder}: no adapter here ({name} is missing)")
    try:
        config = LoraConfig.from_pretrained(str(folder))
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise BundleError(f"{folder}: the adapter cannot be read: {str(error).splitlines()[0]}") from error
    return config, {key.removeprefix(PEFT_PREFIX): value for key, value in weights.items()}
