"""LoRA adapters of the generator, as standard PEFT folders with a small record beside them.

    ADAPTER/adapter_config.json          the UNet's LoRA, PEFT's own two files
    ADAPTER/adapter_model.safetensors
    ADAPTER/vae_encoder/                 the same two files again, where the VAE encoder has a LoRA too
    ADAPTER/prompt_embeds.safetensors    embedding of the prompt that it was trained with
    ADAPTER/tudsr.json                   `AdapterRecord`

The keys in `vae_encoder/` start at the autoencoder (`base_model.model.encoder.conv_in...`), so that
`peft.PeftModel.from_pretrained(vae, ADAPTER / "vae_encoder")` loads it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tudsr_runtime.errors import BundleError, TrainingError
from tudsr_runtime.typed import read_typed
from tudsr_train.backbones.backbone import CONDITIONS, PROMPT
from tudsr_train.backbones.unet import TARGETS, UNet
from tudsr_train.bases.prompt import read_conditions
from tudsr_train.foreign import misread, read_config, require_no_repetition
from tudsr_train.generator import Generator

if TYPE_CHECKING:
    from diffusers import ModelMixin

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
ADAPTER_RECORD_FILE = "tudsr.json"
PROMPT_EMBEDS_FILE = "prompt_embeds.safetensors"
VAE_ENCODER_FOLDER = "vae_encoder"
PEFT_PREFIX = "base_model.model."
MOST_FACTOR = 16
"""Greatest factor of a stage, which the runtime knows too."""
MOST_RANK = 256
"""A LoRA's rank may be greater only where its weights are."""
ORDINARY_STARTS = (True, False, "gaussian", "orthogonal")
"""Values of `init_lora_weights` by which nothing is done to the base's own weights."""

TARGET_LISTS = UNet.lora_targets
"""Which layers of a UNet get a LoRA, by `lora.targets`; other backbones have lists of the same names."""


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
    base: str = ""
    """Name or hub id of that base, for people."""
    vae_encoder_rank: int = 0
    """Rank of the LoRA in `vae_encoder/`; 0 where the VAE encoder is the base's own."""

    def __post_init__(self) -> None:
        bounds = {
            "stage": (1, 2),
            "timestep": (0, 10**6),
            "factor": (1, MOST_FACTOR),
            "vae_encoder_rank": (0, 10**5),
        }
        for name, (least, most) in bounds.items():
            if not least <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name} is {str(value)[:40]}, not {least} to {most}")


def prompt_sha256(prompt_embeds: Tensor | Mapping[str, Tensor]) -> str:
    """Hash of an embedding's float32 values and shape; of several conditions, those of each in turn."""
    c = {PROMPT: prompt_embeds} if isinstance(prompt_embeds, Tensor) else prompt_embeds
    digest = hashlib.sha256()
    for name in (name for name in CONDITIONS if name in c):
        values = c[name].detach().float().cpu().numpy()
        digest.update(repr(values.shape).encode() + values.tobytes())
    return digest.hexdigest()


def record_of(generator: Generator, name: str, stage: int, timestep: int, factor: int) -> AdapterRecord:
    """The record of adapter `name` as it is attached to the generator now."""
    return AdapterRecord(
        stage,
        timestep,
        factor,
        generator.base_sha256,
        prompt_sha256(generator.conditions),
        generator.base_id,
        generator.vae.peft_config[name].r if has_vae_encoder_adapter(generator, name) else 0,
    )


def add_adapter(generator: Generator, name: str, rank: int, target_modules: tuple[str, ...]) -> None:
    """Attach a fresh trainable LoRA to the backbone, and make it active; it starts as an exact identity.

    alpha = rank (scaling 1), A gaussian, B zero. Afterwards `Generator.use` switches adapters. Where a base
    passes pixels by its backbone, `conv_out` gets none: it would write them.
    """
    kept = [one for one in target_modules if one != "conv_out" or not generator.passed_channels]
    _add(generator.unet, name, rank, kept)
    generator.use(name)


def add_vae_encoder_adapter(generator: Generator, name: str, rank: int) -> None:
    """Attach a fresh trainable LoRA to the VAE's encoder (OSEDiff, OMGSR: rank 4 and 16), and make it active.

    The decoder stays the base's own. Raises TrainingError (exit 10) where the autoencoder has no weights.
    """
    if not hasattr(generator.vae, "encoder") or not hasattr(generator.vae, "add_adapter"):
        why = (
            "its encoder has no weights, and so"
            if not hasattr(generator.vae, "encoder")
            else "its autoencoder"
        )
        raise TrainingError(
            f"{generator.base_id}: {why} can have no LoRA",
            hint="set lora.vae_encoder_rank to 0",
        )
    endings = "|".join(target.replace(".", r"\.") for target in TARGETS)
    _add(generator.vae, name, rank, rf"encoder\.(.+\.)?({endings})")
    generator.use(name)


def _add(model: ModelMixin, name: str, rank: int, target_modules: list[str] | str) -> None:
    # PEFT's own default for alpha is 8, whatever the rank
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=target_modules)
    with _several_adapters_are_meant():
        model.add_adapter(config, adapter_name=name)


def has_vae_encoder_adapter(generator: Generator, name: str) -> bool:
    """Whether adapter `name` changes the VAE encoder too."""
    return name in getattr(generator.vae, "peft_config", {})


@contextlib.contextmanager
def _several_adapters_are_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        yield


def adapter_parameters(generator: Generator, name: str) -> dict[str, nn.Parameter]:
    """The adapter's own weights, by name; by name and not by requires_grad, which `set_adapter` flips.

    Names are the UNet's; those of the VAE encoder follow, with `vae.` before them.
    """
    named = [
        *generator.unet.named_parameters(),
        *generator.vae.named_parameters(prefix="vae"),
    ]
    return {key: p for key, p in named if f".{name}." in key and "lora_" in key}


def save_adapter(generator: Generator, name: str, folder: Path, record: AdapterRecord) -> None:
    """Write the adapter into `folder` (existing, empty): the files that this module's docstring lists.

    PEFT and diffusers load it:

        peft.PeftModel.from_pretrained(unet, folder)
        unet.load_lora_adapter(folder, prefix="base_model.model",
                               weight_name="adapter_model.safetensors", use_safetensors=True)
    """
    _write_peft(generator.unet, name, folder)
    if has_vae_encoder_adapter(generator, name):
        (folder / VAE_ENCODER_FOLDER).mkdir()
        _write_peft(generator.vae, name, folder / VAE_ENCODER_FOLDER)
    c = {key: value.cpu().contiguous() for key, value in generator.conditions.items()}
    save_file(c, folder / PROMPT_EMBEDS_FILE)
    (folder / ADAPTER_RECORD_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n")


def _write_peft(model: ModelMixin, name: str, folder: Path) -> None:
    weights = get_peft_model_state_dict(model, adapter_name=name)
    save_file(
        {PEFT_PREFIX + key: value.detach().float().cpu().contiguous() for key, value in weights.items()},
        folder / WEIGHTS_FILE,
        metadata={"format": "pt"},
    )
    config: LoraConfig = model.peft_config[name]
    targets = config.target_modules
    stored = config.to_dict() | {
        "inference_mode": True,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(stored, indent=2, default=str, sort_keys=True) + "\n")


def load_adapter(generator: Generator, folder: str | Path, name: str) -> AdapterRecord | None:
    """Attach the adapter in `folder` to the generator as `name`, frozen and active.

    The generator takes over the prompt that the adapter brings. Returns the adapter's record, or None where
    the folder has none (an adapter from elsewhere). Raises BundleError (exit 5) where files are missing or
    damaged, the weights do not fit the base, or the record names another base.
    """
    folder = Path(folder)
    config, weights = read_peft(folder)
    record = read_adapter_record(folder)
    if record and record.base_sha256 != generator.base_sha256:
        raise BundleError(
            f"{folder}: the adapter was trained on base {record.base_sha256[:12]}, "
            f"but {generator.base_id} is {generator.base_sha256[:12]}",
            hint="give the base that the adapter was trained on",
        )
    attach(generator.unet, config, weights, name, folder)
    if (folder / VAE_ENCODER_FOLDER).is_dir():
        attach(generator.vae, *read_peft(folder / VAE_ENCODER_FOLDER), name, folder / VAE_ENCODER_FOLDER)
    elif record and record.vae_encoder_rank:
        raise BundleError(
            f"{folder}: the adapter's LoRA of the VAE encoder ({VAE_ENCODER_FOLDER}/) is missing"
        )
    if (folder / PROMPT_EMBEDS_FILE).is_file():
        generator.set_prompt(read_conditions(folder / PROMPT_EMBEDS_FILE))
    generator.use(name)
    for parameter in adapter_parameters(generator, name).values():
        parameter.requires_grad_(False)
    return record


@torch.no_grad()
def copy_adapter(generator: Generator, parameters: dict[str, nn.Parameter], name: str, folder: Path) -> None:
    """Copy the weights of the adapter in `folder` into those of the attached adapter `name`.

    Raises BundleError (exit 5) where the folder holds no adapter, or one of another base; TrainingError where
    its layers or its rank are others.
    """
    record = read_adapter_record(folder)
    if record and record.base_sha256 != generator.base_sha256:
        raise BundleError(
            f"{folder}: the adapter was trained on base {record.base_sha256[:12]}, "
            f"but {generator.base_id} is {generator.base_sha256[:12]}"
        )
    found = {"": read_peft(folder)[1]}
    if (folder / VAE_ENCODER_FOLDER).is_dir():
        found["vae."] = read_peft(folder / VAE_ENCODER_FOLDER)[1]
    weights = {prefix + key: value for prefix, part in found.items() for key, value in part.items()}
    own = {key.replace(f".{name}.", "."): parameter for key, parameter in parameters.items()}
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
        raise TrainingError(
            f"init: the adapter in {folder} has {len(weights)} weights, this one {len(own)}, or other shapes",
            hint="the same lora.rank and lora.targets as it was trained with",
        )
    for key, parameter in own.items():
        parameter.copy_(weights[key])


def read_adapter_record(folder: Path) -> AdapterRecord | None:
    """The record in an adapter folder, or None where there is none; BundleError where it is damaged."""
    path = folder / ADAPTER_RECORD_FILE
    if not path.is_file():
        return None

    def wrong(complaint: str) -> BundleError:
        return BundleError(f"{path}: not a record of an adapter: {complaint}")

    try:
        tree = read_config(path)
    except (OSError, ValueError) as error:
        raise wrong(str(error)) from error
    return read_typed(AdapterRecord, tree, wrong, whole="the record", defaults=True)


def attach(
    model: ModelMixin, config: LoraConfig, weights: dict[str, Tensor], name: str, origin: Path | str
) -> None:
    """Add an adapter to a diffusers model as `name`, not active yet; `weights` have PEFT's keys, unprefixed.

    Raises BundleError (exit 5), which names `origin`, where a weight has no place or a place no weight, or
    the config is of another kind than of a plain LoRA.
    """
    with misread(f"{origin}: the adapter does not fit the base"):
        config = _harmless(config, weights)
        with _several_adapters_are_meant():
            model.add_adapter(config, adapter_name=name)
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
    missing = [key for key in result.missing_keys if f".{name}." in key]
    if result.unexpected_keys or missing:
        worst = [*result.unexpected_keys, *missing][0]
        raise BundleError(
            f"{origin}: the adapter does not fit the base: {len(result.unexpected_keys)} weights have no "
            f"place, {len(missing)} places have no weight (first: {worst})"
        )


def _harmless(config: LoraConfig, weights: dict[str, Tensor]) -> LoraConfig:
    """A config that PEFT can follow in no time and with no more memory than the weights take.

    Where its modules are named by a regular expression, which may be made so that it is matched for ever,
    those that have weights take its place. Raises ValueError.
    """
    ranks = [value.shape[0] for key, value in weights.items() if key.endswith("lora_A.weight") and value.ndim]
    most = max([MOST_RANK, *ranks])
    for rank in (config.r, *(config.rank_pattern or {}).values()):
        if not 1 <= rank <= most:
            raise ValueError(f"its rank is {rank}, that of its weights {max(ranks, default=0)}")
    if config.init_lora_weights not in ORDINARY_STARTS:
        raise ValueError(
            f"init_lora_weights {str(config.init_lora_weights)[:40]!r} means that the base's weights were "
            "changed as well; PEFT can convert it to an ordinary LoRA"
        )
    for where in ("rank_pattern", "alpha_pattern", "layers_pattern", "modules_to_save"):
        require_no_repetition(getattr(config, where), where)
    for expression in (config.target_modules, config.exclude_modules):
        if isinstance(expression, str):
            re.compile(expression)
    config = copy.copy(config)
    if isinstance(config.target_modules, str) or isinstance(config.exclude_modules, str):
        config.target_modules = {key.partition(".lora_")[0] for key in weights if ".lora_" in key}
        config.exclude_modules = None
    return config


def read_peft(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Config and weights (PEFT's keys, unprefixed) of a PEFT folder; BundleError where it cannot be read."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise BundleError(f"{folder}: no adapter here ({name} is missing)")
    with misread(f"{folder}: the adapter cannot be read"):
        read_config(folder / CONFIG_FILE)
        config = LoraConfig.from_pretrained(str(folder))
        if not isinstance(config, LoraConfig):
            raise ValueError(f"it is no LoRA, but a {type(config).__name__}")
        weights = load_file(folder / WEIGHTS_FILE)
    return config, {key.removeprefix(PEFT_PREFIX): value for key, value in weights.items()}
