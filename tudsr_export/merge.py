"""One stage's adapter, attached to fresh copies of what it changes and merged into their weights.

Two adapters on one UNet would be summed by a merge, so every stage starts from its own copy. Merging is done
in float32: merged in float16, the rounding of the sum costs about half as much error again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusers import ModelMixin
from diffusers.utils import recurse_remove_peft_layers
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tudsr_export.gates import require_finite
from tudsr_export.layouts import PeftLora, StageAdapter, read_adapter
from tudsr_runtime.errors import BundleError, NotFiniteError
from tudsr_train.adapters import attach, prompt_sha256
from tudsr_train.bases.prompt import encode_conditions
from tudsr_train.generator import Generator
from tudsr_train.step import EPSILON, FLOW_PREDICTION

DEFAULT_TIMESTEP = {1: 200, 2: 50}
"""t_1 and t_2 (paper section 4.1), for adapters without a record."""
DEFAULT_FACTOR = {1: 4, 2: 2}
"""M and N (paper section 4.1), for adapters without a record."""
BASE_ENCODER = "vae_encoder"
TRAINED_ON = {
    EPSILON: "Stable Diffusion 2.1-base, which these adapters were trained on",
    "omgsr-f": "FLUX.1-dev, which these adapters were trained on",
    "tsd-sr": "Stable Diffusion 3 Medium, which these adapters were trained on",
}
NOTES = {
    "osediff": "OSEDiff tells its UNet in words what a picture shows; here one prompt is fixed (--prompt)"
}


@dataclass(frozen=True)
class StageSettings:
    """What one stage's adapter was trained for, and where that is known from."""

    stage: int
    timestep: int
    factor: int
    rank: int
    adapter_sha256: str
    prompt_sha256: str | None
    """Hash of the embedding it was trained with; None where the adapter has no record."""
    used_prompt_sha256: str
    """Hash of the embedding that the bundle has."""
    reason: str
    """Why this timestep and factor."""
    layout: str = "tudsr"
    formula: str = EPSILON
    """How z_H follows from the prediction (`tudsr_train.step`)."""
    note: str = ""
    """What a person should know about an adapter of this layout."""
    encoder: str = BASE_ENCODER
    """The component that encodes for it: its own where the adapter changes the VAE's encoder."""
    component: str = "unet"
    """What its backbone is called."""

    @property
    def name(self) -> str:
        return f"stage{self.stage}"

    @property
    def unet(self) -> str:
        """The component that holds its backbone."""
        return f"{self.component}_{self.name}"


def attach_stage(
    base: Generator,
    origin: Path | StageAdapter,
    stage: int,
    timestep: int | None = None,
    prompt: str | None = None,
) -> tuple[Generator, StageSettings]:
    """A generator with an adapter, or that at `origin`, attached to fresh copies of the base's parts, not
    merged.

    What the adapter does not change is shared with `base`, which stays as it is.

    Args:
        timestep: None takes the adapter's own, else the paper's.
        prompt: None takes the adapter's own, else the base's.

    Raises:
        BundleError: no adapter there, or it is for another base, another stage, another kind of prediction,
            or no timestep of the base.
        NotFiniteError: the adapter holds NaN or infinity.
    """
    adapter = origin if isinstance(origin, StageAdapter) else read_adapter(origin)
    origin = adapter.origin
    generator = Generator(
        copy.deepcopy(base.vae) if adapter.encoder else base.vae,
        copy.deepcopy(base.unet),
        base.conditions,
        base.noising,
        base.prediction_type,
        base.base_id,
        base.base_sha256,
        base.folder,
        base.backbone,
    ).eval()
    _require_network(generator, adapter)
    _set_prompt(generator, adapter, prompt)
    if not adapter.shifted:
        generator.latent_offset = generator.codec.shift_factor * generator.codec.scaling_factor
    settings = _settings(generator, adapter, stage, timestep)
    _replace(generator.unet, adapter.trained, origin)
    _attach_all(generator.unet, adapter.unet, settings.name, origin)
    if adapter.encoder:
        _attach_all(generator.vae, adapter.encoder, settings.name, origin)
    return generator, settings


def _settings(base: Generator, adapter: StageAdapter, stage: int, timestep: int | None) -> StageSettings:
    record, origin = adapter.record, adapter.origin
    if record is not None:
        _require_base_and_stage(base, adapter, stage)
    chosen, reason = _timestep(adapter, stage, timestep)
    first, last = base.noising.first, base.noising.last
    if not first <= chosen <= last:
        raise BundleError(
            f"{origin}: timestep {chosen} is outside the schedule of {base.base_id}, {first} to {last}"
        )
    if not 0 < (level := float(base.level(chosen))) <= 1:
        raise BundleError(
            f"{origin}: in the schedule of {base.base_id} nothing is left of the picture at timestep "
            f"{chosen} (alphas_cumprod is {level:g})"
        )
    return StageSettings(
        stage,
        chosen,
        record.factor if record else DEFAULT_FACTOR[stage],
        adapter.rank,
        adapter.sha256,
        record.prompt_sha256 if record else None,
        prompt_sha256(base.conditions),
        reason,
        adapter.layout,
        adapter.formula or base.prediction_type,
        NOTES.get(adapter.layout, ""),
        f"{BASE_ENCODER}_stage{stage}" if adapter.encoder else BASE_ENCODER,
        base.backbone.component,
    )


def _require_network(base: Generator, adapter: StageAdapter) -> None:
    """BundleError where the base is of another kind than every adapter of this layout is for."""
    what, hint = f"{adapter.origin}: a {adapter.layout} adapter", TRAINED_ON.get(adapter.layout)
    network = type(base.unet).__name__
    if adapter.network not in (None, network):
        raise BundleError(f"{what} is for a {adapter.network}, but {base.base_id} has a {network}", hint=hint)
    needed = FLOW_PREDICTION if adapter.formula == FLOW_PREDICTION else EPSILON
    if adapter.formula and base.prediction_type != needed:
        raise BundleError(
            f"{what} needs a base that predicts {needed}, but {base.base_id} predicts {base.prediction_type}",
            hint=hint or TRAINED_ON[EPSILON],
        )


def _timestep(adapter: StageAdapter, stage: int, asked: int | None) -> tuple[int, str]:
    if asked is not None:
        return asked, "as --timesteps says"
    if adapter.record is not None:
        return adapter.record.timestep, "as the adapter's record says"
    if adapter.timestep is not None:
        return adapter.timestep, f"as every {adapter.layout} adapter"
    return DEFAULT_TIMESTEP[stage], "the paper's; the adapter has no record"


def _require_base_and_stage(base: Generator, adapter: StageAdapter, stage: int) -> None:
    record, origin = adapter.record, adapter.origin
    assert record is not None
    if record.base_sha256 != base.base_sha256:
        raise BundleError(
            f"{origin}: the adapter was trained on base {record.base_sha256[:12]}, "
            f"but {base.base_id} is {base.base_sha256[:12]}",
            hint="give the base that the adapter was trained on",
        )
    if record.stage != stage:
        raise BundleError(
            f"{origin}: this adapter was trained for stage {record.stage}, but is given for stage {stage}",
            hint=f"pass it as --stage{record.stage}",
        )


def _set_prompt(generator: Generator, adapter: StageAdapter, asked: str | None) -> None:
    """Take the prompt that was asked for, else the one the adapter was trained with, else the base's."""
    wanted = adapter.prompt if asked is None else asked
    # A base that stores one embedding stores that of the empty prompt.
    if wanted is None or generator.folder is None or (wanted == "" and asked is None):
        return
    if isinstance(wanted, str):
        wanted = encode_conditions(generator.folder, generator.backbone, generator.unet, wanted)
    generator.set_prompt(wanted)


def _replace(unet: nn.Module, trained: Mapping[str, Tensor], origin: Path) -> None:
    state = unet.state_dict()
    for key, value in trained.items():
        if key not in state or state[key].shape != value.shape:
            place = tuple(state[key].shape) if key in state else "no such weight"
            raise BundleError(
                f"{origin}: the adapter does not fit the base: {key} is {tuple(value.shape)}, "
                f"the base has {place}"
            )
        require_finite(value, f"{origin}: {key}")
    unet.load_state_dict(dict(trained), strict=False)


def _attach_all(model: ModelMixin, loras: Iterable[PeftLora], name: str, origin: Path) -> None:
    names: list[str] = []
    if not hasattr(model, "add_adapter"):
        raise BundleError(f"{origin}: the adapter is for a VAE's encoder, but this base's has no weights")
    for index, lora in enumerate(loras):
        if lora.config.modules_to_save:
            raise BundleError(
                f"{origin}: the adapter is more than a LoRA: {', '.join(lora.config.modules_to_save)} was "
                "trained whole (modules_to_save), which cannot be exported"
            )
        names.append(name if index == 0 else f"{name}_{index + 1}")
        attach(model, lora.config, dict(lora.weights), names[-1], origin)
    model.set_adapter(names)
    model.requires_grad_(False)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            require_finite(parameter, f"{origin}: {key}")


def merge_adapter(model: nn.Module) -> None:
    """Add the attached adapters into the weights of `model`, in place, and take their layers out.

    Afterwards the modules are those of a plain `UNet2DConditionModel` or `AutoencoderKL`. Raises
    NotFiniteError where the sum is not finite, BundleError where a weight has no place for it.
    """
    try:
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge(safe_merge=True)
    except ValueError as error:
        raise NotFiniteError(f"merging the adapter failed: {error}") from error
    except RuntimeError as error:
        # PEFT's, where a LoRA has a bias and the layer has none.
        raise BundleError(f"the adapter cannot be merged: {error}", hint="--no-merge-lora") from error
    recurse_remove_peft_layers(model)
