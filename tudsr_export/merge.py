"""One stage's LoRA, attached to a fresh copy of the base's UNet and merged into its weights.

Two adapters on one UNet would be summed by a merge, so every stage starts from its own copy. Merging is done
in float32: merged in float16, the rounding of the sum costs about half as much error again.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from tudsr_export.parity import require_finite
from tudsr_runtime.bundle import file_sha256
from tudsr_runtime.errors import BundleError, NotFiniteError
from tudsr_train.adapters import WEIGHTS_FILE, load_adapter
from tudsr_train.generator import Generator

DEFAULT_TIMESTEP = {1: 200, 2: 50}
"""t_1 and t_2 (paper section 4.1), for adapters without a record."""
DEFAULT_FACTOR = {1: 4, 2: 2}
"""M and N (paper section 4.1), for adapters without a record."""


@dataclass(frozen=True)
class StageSettings:
    """What one stage's adapter was trained for, and where that is known from."""

    stage: int
    timestep: int
    factor: int
    rank: int
    adapter_sha256: str
    prompt_sha256: str | None
    """Of the embedding it was trained with; None where the adapter has no record."""
    reason: str
    """Why this timestep and factor."""

    @property
    def name(self) -> str:
        return f"stage{self.stage}"

    @property
    def unet(self) -> str:
        """The component that holds its UNet."""
        return f"unet_{self.name}"


def attach_stage(base: Generator, folder: Path, stage: int) -> tuple[Generator, StageSettings]:
    """A generator whose UNet is a fresh copy of the base's with the adapter in `folder` attached, not merged.

    The autoencoder and the prompt are shared with `base`, which stays as it is.

    Raises:
        BundleError: no adapter there, or it is for another base, another stage, or no timestep of the base.
        NotFiniteError: the adapter holds NaN or infinity.
    """
    generator = Generator(
        base.vae,
        copy.deepcopy(base.unet),
        base.prompt_embeds,
        base.alphas_cumprod,
        base.prediction_type,
        base.base_id,
        base.base_sha256,
    ).eval()
    record = load_adapter(generator, folder, f"stage{stage}")
    if record is not None and record.stage != stage:
        raise BundleError(
            f"{folder}: this adapter was trained for stage {record.stage}, but is given for stage {stage}",
            hint=f"pass it as --stage{record.stage}",
        )
    timestep = record.timestep if record else DEFAULT_TIMESTEP[stage]
    if not 0 <= timestep < len(base.alphas_cumprod):
        raise BundleError(
            f"{folder}: timestep {timestep} is outside the schedule of {base.base_id}, "
            f"0 to {len(base.alphas_cumprod) - 1}"
        )
    for name, parameter in generator.unet.named_parameters():
        if "lora_" in name:
            require_finite(parameter, f"{folder}: {name}")
    return generator, StageSettings(
        stage,
        timestep,
        record.factor if record else DEFAULT_FACTOR[stage],
        generator.unet.peft_config[f"stage{stage}"].r,
        file_sha256(folder / WEIGHTS_FILE),
        record.prompt_sha256 if record else None,
        "as the adapter's record says" if record else "the paper's; the adapter has no record",
    )


def merge_adapter(unet: nn.Module) -> None:
    """Add the attached adapter into the weights of `unet`, in place, and take its layers out.

    Afterwards the modules are those of a plain `UNet2DConditionModel`. Raises NotFiniteError where the sum is
    not finite.
    """
    try:
        unet.fuse_lora(safe_fusing=True)
    except ValueError as error:
        raise NotFiniteError(f"merging the adapter failed: {error}") from error
    unet.unload_lora()
