"""What one stage adds to a base, read from any of the layouts that one-step methods publish.

    layout       on disk                                              timestep    formula    prompt
    tudsr        PEFT folder with tudsr.json                          recorded    base's     beside it
    peft         PEFT folder                                          paper's     base's     base's
    omgsr        unet_lora_adapter/, vae_encoder_lora_adapter/        273         epsilon    empty
    omgsr-f      flux_adapter/, vae_encoder_adapter/                  505         flow       empty
    tsd-sr       transformer.safetensors, vae.safetensors             1000        flow       *_embeds.pt
    diffusers    pytorch_lora_weights.safetensors, or another name    paper's     base's     base's
    osediff      a pickle with rank_unet, rank_vae, ...               999         epsilon    empty
    pisa-sr      a pickle with lora_rank_unet_pix, ..._sem, ...       1           z - eps    empty

omgsr for Stable Diffusion, omgsr-f for FLUX.1-dev (Wu et al. 2025), osediff (Wu et al. 2024), pisa-sr (Sun et
al. 2025), tsd-sr for Stable Diffusion 3 (Dong et al. 2025). A pickle is only ever read by PyTorch's loader of
plain weights, which refuses one that wants to run code.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tudsr_runtime.errors import BundleError
from tudsr_runtime.files import file_sha256
from tudsr_runtime.typed import parse_json
from tudsr_train.adapters import (
    PROMPT_EMBEDS_FILE,
    VAE_ENCODER_FOLDER,
    WEIGHTS_FILE,
    AdapterRecord,
    read_adapter_record,
    read_peft,
)
from tudsr_train.backbones.backbone import POOLED, PROMPT
from tudsr_train.backbones.flux import Flux
from tudsr_train.backbones.sd3 import SD3
from tudsr_train.bases.prompt import read_conditions
from tudsr_train.foreign import misread
from tudsr_train.step import EPSILON, FLOW_PREDICTION, RESIDUAL

OMGSR_UNET, OMGSR_ENCODER = "unet_lora_adapter", "vae_encoder_lora_adapter"
OMGSR_FLUX, OMGSR_FLUX_ENCODER = "flux_adapter", "vae_encoder_adapter"
OMGSR_FLUX_TIMESTEP = 505
"""Step 244 of FLUX's schedule of 999 steps for 4096 tokens is a sigma of 0.50511."""
TSD_SR_TRANSFORMER, TSD_SR_VAE = "transformer.safetensors", "vae.safetensors"
TSD_SR_PROMPT = {PROMPT: "prompt_embeds.pt", POOLED: "pool_embeds.pt"}
TSD_SR_PROMPT_FOLDER = Path("dataset", "default")
"""Where its embeddings are put, beside checkpoint/tsdsr, which has the weights."""
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
DIFFUSERS_METADATA = "lora_adapter_metadata"
PICKLES = (".pkl", ".pt", ".pth", ".bin", ".ckpt")
OSEDIFF_PARTS = ("encoder", "decoder", "others")
PEFT_ALPHA = 8
"""`lora_alpha` of a LoraConfig that names none, which OSEDiff and PiSA-SR rely on."""


@dataclass(frozen=True)
class PeftLora:
    """One LoRA: PEFT's config, and its weights by PEFT's keys without a prefix."""

    config: LoraConfig
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class StageAdapter:
    """What one stage adds to a base; what is None follows from the base or the paper."""

    origin: Path
    layout: str
    sha256: str
    unet: tuple[PeftLora, ...]
    """All active together: their products are summed."""
    encoder: tuple[PeftLora, ...] = ()
    """LoRA of the VAE's encoder, by names within the VAE."""
    trained: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights of the UNet that were trained whole and replace the base's."""
    timestep: int | None = None
    formula: str | None = None
    """"epsilon" as in Eq. (2), "flow_prediction", or "residual": z_H = z_L - B(z_L, t, c)."""
    prompt: str | Tensor | Mapping[str, Tensor] | None = None
    """The prompt as text, as an embedding (1, L, D), or as all conditions by name."""
    record: AdapterRecord | None = None
    network: str | None = None
    """diffusers' class of the network that it is for, where that is one alone."""
    shifted: bool = True
    """Whether its network reads latents from which the autoencoder's shift is taken, as bases do."""

    @property
    def rank(self) -> int:
        """The largest rank among the UNet's LoRAs."""
        return max(max((lora.config.r, *lora.config.rank_pattern.values())) for lora in self.unet)


def read_adapter(origin: Path) -> StageAdapter:
    """Read an adapter, whatever its layout (see the module's table).

    Raises:
        BundleError: nothing there, unreadable, truncated, of no known layout, or a pickle that is not only
            weights.
    """
    if not origin.exists():
        raise BundleError(f"{origin}: no adapter here (there is no such file or folder)")
    if origin.is_dir():
        return _read_folder(origin)
    if origin.suffix == ".safetensors":
        return _read_diffusers(origin)
    if origin.suffix in PICKLES:
        return _read_pickle(origin)
    raise BundleError(
        f"{origin}: not an adapter's file",
        hint=f"a PEFT folder, a .safetensors file, or a checkpoint ({', '.join(PICKLES)})",
    )


def _read_folder(folder: Path) -> StageAdapter:
    if (folder / OMGSR_UNET).is_dir():
        return _read_omgsr(folder)
    if (folder / OMGSR_FLUX).is_dir():
        return _read_omgsr_flux(folder)
    if (folder / TSD_SR_TRANSFORMER).is_file() and (folder / TSD_SR_VAE).is_file():
        return _read_tsd_sr(folder)
    if (folder / DIFFUSERS_FILE).is_file():
        return _read_diffusers(folder / DIFFUSERS_FILE)
    return _read_peft_folder(folder)


def _read_peft_folder(folder: Path) -> StageAdapter:
    """What `tudsr_train.adapters.save_adapter` writes, or only PEFT's two files of it."""
    record, unet = read_adapter_record(folder), PeftLora(*read_peft(folder))
    files, encoder = [folder / WEIGHTS_FILE], folder / VAE_ENCODER_FOLDER
    if encoder.is_dir():
        files.append(encoder / WEIGHTS_FILE)
    elif record and record.vae_encoder_rank:
        raise BundleError(f"{folder}: the adapter's LoRA of the VAE encoder ({encoder.name}/) is missing")
    stored = folder / PROMPT_EMBEDS_FILE
    return StageAdapter(
        folder,
        "tudsr" if record else "peft",
        _sha256(files),
        (unet,),
        (PeftLora(*read_peft(encoder)),) if encoder.is_dir() else (),
        timestep=record.timestep if record else None,
        prompt=read_conditions(stored) if stored.is_file() else None,
        record=record,
    )


def _read_omgsr(folder: Path) -> StageAdapter:
    unet, encoder = folder / OMGSR_UNET, folder / OMGSR_ENCODER
    return StageAdapter(
        folder,
        "omgsr",
        _sha256((unet / WEIGHTS_FILE, encoder / WEIGHTS_FILE)),
        (PeftLora(*read_peft(unet)),),
        (_encoder_lora(encoder),),
        timestep=273,
        formula=EPSILON,
        prompt="",
    )


def _read_omgsr_flux(folder: Path) -> StageAdapter:
    transformer, encoder = folder / OMGSR_FLUX, folder / OMGSR_FLUX_ENCODER
    return StageAdapter(
        folder,
        "omgsr-f",
        _sha256((transformer / WEIGHTS_FILE, encoder / WEIGHTS_FILE)),
        (PeftLora(*read_peft(transformer)),),
        (_encoder_lora(encoder),),
        timestep=OMGSR_FLUX_TIMESTEP,
        formula=FLOW_PREDICTION,
        prompt="",
        network=Flux.name,
    )


def _read_tsd_sr(folder: Path) -> StageAdapter:
    """Two LoRAs as a pipeline of Stable Diffusion 3 saves that of its transformer; alpha is the rank."""
    prompt = {name: _embedding(folder, file) for name, file in TSD_SR_PROMPT.items()}
    files = folder / TSD_SR_TRANSFORMER, folder / TSD_SR_VAE
    transformer, encoder = (_pipeline_lora(file) for file in files)
    return StageAdapter(
        folder,
        "tsd-sr",
        _sha256(files),
        (transformer,),
        (encoder,),
        timestep=1000,
        formula=FLOW_PREDICTION,
        prompt=prompt,
        network=SD3.name,
        shifted=False,
    )


def _pipeline_lora(file: Path) -> PeftLora:
    weights = _without_prefix(load_safetensors(file)[0], "transformer.")
    ranks = {value.shape[0] for key, value in weights.items() if key.endswith("lora_A.weight") and value.ndim}
    if len(ranks) != 1 or any(".lora_" not in key for key in weights):
        raise BundleError(f"{file}: not TSD-SR's LoRA, which has one rank throughout and nothing else")
    (rank,) = ranks
    return PeftLora(LoraConfig(r=rank, lora_alpha=rank, target_modules=_modules(weights)), weights)


def _embedding(folder: Path, name: str) -> Tensor:
    """One of TSD-SR's stored embeddings, float32, from beside its weights or from its project's place."""
    project = folder.parent.parent / TSD_SR_PROMPT_FOLDER
    file = next((place / name for place in (folder, project) if (place / name).is_file()), None)
    if file is None:
        raise BundleError(
            f"{folder}: TSD-SR's embedding of its prompt ({name}) is neither here nor in {project}",
            hint=f"copy {' and '.join(TSD_SR_PROMPT.values())}, which its makers publish, into {folder}",
        )
    value = load_pickle(file)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise BundleError(f"{file}: no embedding, but a {type(value).__name__}")
    return value.float()


def _encoder_lora(folder: Path) -> PeftLora:
    """A PEFT folder of the VAE's encoder alone, renamed to what its modules are called within the VAE."""
    config, weights = read_peft(folder)
    weights = {f"encoder.{key}": value for key, value in weights.items()}
    config.target_modules = _modules(weights)
    return PeftLora(config, weights)


def _modules(weights: Iterable[str]) -> list[str]:
    return sorted({key.partition(".lora_")[0] for key in weights})


def _read_diffusers(file: Path) -> StageAdapter:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils import convert_unet_state_dict_to_peft, get_peft_kwargs

    weights, metadata = load_safetensors(file)
    with misread(f"{file}: not a LoRA of a UNet in diffusers' layout"):
        weights, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(weights)
        if any(key.startswith("text_encoder") for key in weights):
            raise BundleError(
                f"{file}: a LoRA of the text encoder too, which a bundle with a fixed prompt lacks"
            )
        weights = convert_unet_state_dict_to_peft(_without_prefix(weights, "unet."))
        alphas = convert_unet_state_dict_to_peft(_without_prefix(alphas or {}, "unet."))
        ranks = {key: value.shape[1] for key, value in weights.items() if key.endswith("lora_B.weight")}
        if not ranks or any(".lora_" not in key for key in weights):
            raise BundleError(f"{file}: not a LoRA of a UNet in diffusers' layout")
        known = get_peft_kwargs(ranks, alphas, weights) | metadata
    known["target_modules"] = _modules(weights)
    return StageAdapter(file, "diffusers", file_sha256(file), (PeftLora(_config(file, known), weights),))


def load_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, and what the file says of its LoRA's rank and alpha. Raises BundleError."""
    with misread(f"{file}: the file cannot be read"):
        with safe_open(file, "pt") as opened:
            stored = parse_json((opened.metadata() or {}).get(DIFFUSERS_METADATA, "{}"))
        weights = load_file(file)
    return weights, _without_prefix(stored, "unet.")


def _without_prefix(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items()}


def _config(file: Path, values: Mapping[str, Any]) -> LoraConfig:
    """A LoraConfig from what a file of some version of PEFT says; what this one does not know is dropped."""
    fields = LoraConfig.__dataclass_fields__
    with misread(f"{file}: its LoRA is of a kind that cannot be read"):
        return LoraConfig(**{key: value for key, value in values.items() if key in fields})


def _read_pickle(file: Path) -> StageAdapter:
    saved = load_pickle(file)
    if not isinstance(saved, dict):
        raise BundleError(f"{file}: neither OSEDiff's nor PiSA-SR's checkpoint, but a {type(saved).__name__}")
    with misread(f"{file}: the checkpoint is incomplete"):
        if "lora_rank_unet_pix" in saved:
            return _pisa_sr(file, saved)
        if "unet_lora_encoder_modules" in saved:
            return _osediff(file, saved)
    raise BundleError(f"{file}: neither OSEDiff's nor PiSA-SR's checkpoint", hint="a PEFT folder")


def load_pickle(file: Path) -> Any:
    """Weights, numbers and text from a pickle; one that holds anything else is refused before it is run.

    Raises BundleError.
    """
    try:
        with warnings.catch_warnings():
            # Of pickle protocols: what cannot be read becomes an error below.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BundleError(
            f"{file}: refused, for it holds more than weights, which could be code ({_reason(error)})",
            hint="a checkpoint from its publisher, or one converted to safetensors",
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise BundleError(f"{file}: the checkpoint cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The sentence of PyTorch's page-long message that names what was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (named or lines or [type(error).__name__])[0][:200]


def _osediff(file: Path, saved: Mapping[str, Any]) -> StageAdapter:
    """OSEDiff's `save_model`: three adapters on the UNet, one on the VAE, and `conv_in` whole."""
    state = saved["state_dict_unet"]
    unet = tuple(
        _lora(saved["rank_unet"], saved[f"unet_lora_{part}_modules"], state, f"default_{part}")
        for part in OSEDIFF_PARTS
    )
    encoder = _lora(
        saved["rank_vae"], saved["vae_lora_encoder_modules"], saved["state_dict_vae"], "default_encoder"
    )
    trained = {
        key.replace(".base_layer", ""): value
        for key, value in state.items()
        if key.startswith("conv_in.") and "lora_" not in key
    }
    sha256 = file_sha256(file)
    return StageAdapter(file, "osediff", sha256, unet, (encoder,), trained, 999, EPSILON, "")


def _pisa_sr(file: Path, saved: Mapping[str, Any]) -> StageAdapter:
    """PiSA-SR's `save_model`: for pixels and for semantics, three adapters each, used together (lambda 1)."""
    unet = tuple(
        _lora(
            saved[f"lora_rank_unet_{kind}"],
            saved[f"unet_lora_{part}_modules_{kind}"],
            saved["state_dict_unet"],
            f"default_{part}_{kind}",
        )
        for kind in ("pix", "sem")
        for part in OSEDIFF_PARTS
    )
    return StageAdapter(file, "pisa-sr", file_sha256(file), unet, timestep=1, formula=RESIDUAL, prompt="")


def _lora(rank: int, modules: Iterable[str], state: Mapping[str, Tensor], name: str) -> PeftLora:
    """The adapter `name` out of a model's state, in which PEFT writes its name into every key."""
    weights = {key.replace(f".{name}.", "."): value for key, value in state.items() if f".{name}." in key}
    config = LoraConfig(r=rank, lora_alpha=PEFT_ALPHA, target_modules=sorted(set(modules)))
    return PeftLora(config, weights)


def _sha256(files: Iterable[Path]) -> str:
    """The hash of one file; that of the hashes of several."""
    try:
        hashes = [file_sha256(file) for file in files]
    except OSError as error:
        raise BundleError(
            f"{error.filename}: the adapter cannot be read: {error.strerror or error}"
        ) from error
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
