"""Settings of a training run. Every default says where it comes from: the paper, its lineage, or us.

OMGSR is the author's earlier code, OSEDiff and PiSA-SR are what that grew from (docs/paper-map.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from tudsr_runtime.errors import TrainingError
from tudsr_train.adapters import TARGET_LISTS
from tudsr_train.bases.nano import NanoBase
from tudsr_train.data.degradation_nano import Degradation
from tudsr_train.data.degradation_real_esrgan import RealESRGAN
from tudsr_train.data.pairs import Softness
from tudsr_train.data.recipes import MixedRecipe, Recipe
from tudsr_train.data.sources import Data, MixedData, Pictures, softens
from tudsr_train.discriminators.base import DiscriminatorConfig
from tudsr_train.losses.dists import DistsConfig
from tudsr_train.losses.reconstruction import LossWeights
from tudsr_train.recomputation import PARTS
from tudsr_train.run.best import RISES
from tudsr_train.run.optimization import SCHEDULES

MOST_R = 8192
"""Pixels; a picture of that side takes gigabytes in training."""
LEAST_LQ = 8
"""Smallest side of an LQ picture, pixels."""
MOST_COUNT = 10**9
MOST_LORA_RANK = 4096


def _require(config: Any, where: str, least: float, *names: str) -> None:
    """TrainingError where a number, or one of several, is below `least` or not finite."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not least <= number < math.inf:
                raise TrainingError(f"{where}{name} must be at least {least:g}, not {number}")


MAX_WORKERS = 256
"""Processes that prepare pairs: more of them is a mistyped number."""


@dataclass(frozen=True)
class Optimization:
    """AdamW, its schedule, and how the run goes about it. One such for each network that is trained."""

    steps: int = 5100
    """Optimizer steps. Paper 4.1: 5,100 in stage 1, 3,500 in stage 2."""
    batch_size: int = 1
    """Images per micro-step and process. Paper 4.1."""
    accumulation: int = 4
    """Micro-steps per optimizer step; in stage 2 see `accumulate`. Paper 4.1."""
    lr: float = 5e-5
    """Learning rate of G. Paper 4.1."""
    lr_discriminator: float = 0.0
    """Learning rate of D; 0 takes `lr`, as the paper has one for both (4.1)."""
    schedule: str = "constant"
    """constant, linear, cosine or polynomial; the last three fall to 1 % of lr. Constant as in the author's
    earlier code (OMGSR); the paper names none."""
    warmup: int = 0
    """Optimizer steps of linear warm-up. None in OMGSR."""
    optimizer: str = "adamw"
    """adamw (paper 4.1), or adamw8bit (bitsandbytes; a quarter of the optimizer's memory)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's. PyTorch's own, and OMGSR's; the paper names none."""
    eps: float = 1e-8
    """AdamW's. PyTorch's own, and OMGSR's; the paper names none."""
    weight_decay: float = 1e-4
    """AdamW's. OMGSR; the paper names none."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm, those of G and of D each for themselves. OMGSR."""
    precision: str = "bf16"
    """bf16 (autocast over float32 weights; OMGSR) or fp32."""
    autoencoder_precision: str = "bf16"
    """What E and D compute in where `precision` is bf16: bf16 as in OMGSR, whose autocast covers them, or
    fp32, so that x_hat is finer than bfloat16's 1/256, for more memory. Eq. (2) is float32 in either."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward: less memory, a third more time. Off in OMGSR."""
    checkpointed: tuple[str, ...] = PARTS
    """The parts that `gradient_checkpointing` is for: any of backbone, encoder and decoder. Ours."""
    compile: bool = False
    """torch.compile the UNet: a minute to start, then faster. Ours."""
    device: str = "auto"
    """auto (CUDA, else what torch finds, else the CPU), cuda, mps or cpu. Ours."""
    threads: int = 0
    """CPU threads, of which at most one a processor is used; 0 leaves torch's choice. Ours."""
    workers: int = 1
    """Processes that prepare pairs, per training process. Ours; OMGSR has 8."""
    ema: float = 0.0
    """Decay per step of the moving average of G's weights, which validation and the result then have, such as
    0.999; 0 for none. None in OMGSR; Real-ESRGAN has 0.999."""
    save_every: int = 500
    """Optimizer steps between checkpoints. Ours."""
    keep: int = 2
    """Checkpoints that stay; older ones are removed. Ours."""
    keep_every: int = 0
    """Checkpoints whose step is a multiple of this stay for good; 0 for none. Ours."""
    store: str = "fp32"
    """What the result's weights are rounded to, fp32 or fp16; fp16 files are half as large. Ours."""
    log_every: int = 50
    """Optimizer steps between lines of the log. Ours."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where figures go besides log.jsonl: any of accelerate's trackers, such as wandb. Ours."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulation", "save_every", "keep", "log_every")
        _require(self, "optimization: ", 1, *counts)
        for name in (*counts, "warmup", "threads", "workers", "keep_every"):
            if getattr(self, name) > MOST_COUNT:
                raise TrainingError(f"optimization: {name} must be at most {MOST_COUNT:,}")
        for name in ("lr", "eps", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"optimization: {name} must be above 0, not {getattr(self, name)}")
        rates = ("lr", "lr_discriminator", "betas", "eps", "weight_decay", "max_grad_norm", "ema")
        _require(self, "optimization: ", 0, *rates, "warmup", "threads", "workers", "keep_every")
        if self.workers > MAX_WORKERS:
            raise TrainingError(f"optimization: workers must be at most {MAX_WORKERS}, not {self.workers}")
        if max(self.betas) >= 1:
            raise TrainingError(f"optimization: betas must be below 1, not {list(self.betas)}")
        if self.ema >= 1:
            raise TrainingError(f"optimization: ema must be below 1, not {self.ema}")
        if self.store not in ("fp32", "fp16"):
            raise TrainingError(f"optimization: store {self.store!r} is not known; fp32 and fp16 are")
        unknown = sorted({*self.checkpointed} - {*PARTS})
        if unknown:
            raise TrainingError(
                f"optimization: checkpointed names {unknown[0][:80]!r}; {', '.join(PARTS[:-1])} and "
                f"{PARTS[-1]} are known"
            )
        if self.schedule not in SCHEDULES:
            raise TrainingError(
                f"optimization: schedule {self.schedule!r} is not known; {', '.join(SCHEDULES)} are"
            )


@dataclass(frozen=True)
class Validation:
    """Pictures that are restored now and then, to be looked at: LQ, the stages' results, HQ in one grid."""

    every: int = 500
    """Optimizer steps between grids; 0 for none. Ours; OMGSR has 100."""
    images: int = 2
    """Rows of the grid. Drawn as the training pairs are, but from another seed. Ours."""
    path: tuple[str, ...] = ()
    """Folders of other pictures to restore than those of training: with `input` the HQ sides of camera pairs,
    else pictures that are degraded as the training's are. Empty: the training's source. Ours."""
    input: str = ""
    """Folder of the LQ pictures of `path`; `beside` where both lie in one folder (001_HR.png, 001_LR4.png).
    Ours."""
    best: str = ""
    """psnr, niqe or dists: the checkpoint with the best such figure of the last stage is kept as `best`.
    Empty for none. Ours."""

    def __post_init__(self) -> None:
        _require(self, "validation: ", 0, "every")
        _require(self, "validation: ", 1, "images")
        if self.best and self.best not in RISES:
            raise TrainingError(f"validation: best is {self.best!r}; {', '.join(RISES)} are known")
        if self.input and not self.path:
            raise TrainingError(
                "validation: input says where LQ pictures are, but path not where the HQ ones"
            )

    def data(self, data: Pictures) -> Pictures:
        """Where validation pictures come from, in a run that trains on `data`."""
        if not self.path:
            return data
        data = data.parts[0] if isinstance(data, MixedData) else data
        if not self.input:
            return replace(data, source="folder", path=self.path, lq_path="")
        return replace(
            data, source="paired", path=self.path, lq_path="" if self.input == "beside" else self.input
        )


@dataclass(frozen=True)
class Lora:
    """Low-rank adapter of a stage: all that is trained of G."""

    rank: int = 32
    """Rank, and alpha, of the UNet's. Paper 4.1; alpha = rank in OMGSR."""
    targets: str = "standard"
    """standard: convolutions and attention (OMGSR); long: projections and feed-forward as well (OSEDiff,
    PiSA-SR). The paper names none. Of a transformer: attention; feed-forward as well."""
    vae_encoder_rank: int = 0
    """Rank of a second one on the VAE's encoder; 0 for none, as the paper's text reads. 16 in OMGSR."""

    def __post_init__(self) -> None:
        if self.targets not in TARGET_LISTS:
            raise TrainingError(f"lora: targets is {self.targets!r}; {', '.join(TARGET_LISTS)} are known")
        _require(self, "lora: ", 1, "rank")
        if max(self.rank, self.vae_encoder_rank) > MOST_LORA_RANK:
            raise TrainingError(f"lora: a rank must be at most {MOST_LORA_RANK}")
        _require(self, "lora: ", 0, "vae_encoder_rank")

    @property
    def target_modules(self) -> tuple[str, ...]:
        """Ends of the names of the layers of a UNet that get a LoRA."""
        return TARGET_LISTS[self.targets]


@dataclass(frozen=True)
class BaseConfig:
    """`tudsr train base`: every UNet weight, from nothing, through Eq. (2). Not in the paper."""

    out: str = ""
    """Folder of the result; its state lies beside it, in `out`.run. `--out` comes first."""
    start: str = ""
    """Folder of a base of the same `model` to go on from, instead of random weights. Ours."""
    seed: int = 0
    """Seed of the first weights and of every draw. Ours."""
    R: int = 192
    """Side of a training picture, pixels. Ours."""
    model: NanoBase = field(default_factory=NanoBase)
    data: Pictures = field(default_factory=Data)
    softness: Softness = field(default_factory=Softness)
    degradation: Recipe = field(default_factory=Degradation)
    mild: Recipe = field(
        default_factory=lambda: Degradation(
            blur_sigma=(0.3, 1.4), sharpen_prob=0.0, noise_sigma=(0.0, 0.004), jpeg_prob=0.0
        )
    )
    """What the restorer at t_2 sees: blur, but next to no noise, as behind a first stage. Ours."""
    t1: int = 200
    """Timestep of stage 1. Paper 4.1."""
    t2: int = 50
    """Timestep of stage 2. Paper 4.1."""
    t2_prob: float = 0.3
    """Share of batches at t_2. Ours."""
    M: tuple[int, ...] = (2, 4)
    """Upsampling factors at t_1. Ours."""
    N: int = 2
    """Upsampling factor at t_2. Paper 4.1."""
    loss: LossWeights = field(default_factory=LossWeights)
    dists: DistsConfig = field(default_factory=DistsConfig)
    validation: Validation = field(default_factory=lambda: Validation(every=0))
    optimization: Optimization = field(default_factory=Optimization)

    def __post_init__(self) -> None:
        _check_shared(self)
        _require(self, "", 0, "t1", "t2")
        _require(self, "", 1, "N")
        if not 0 <= self.t2_prob <= 1:
            raise TrainingError(f"t2_prob is a share from 0 to 1, not {self.t2_prob}")
        if self.loss.gan:
            raise TrainingError(f"loss.gan is {self.loss.gan}, but a base is trained without a discriminator")


@dataclass(frozen=True)
class AdapterConfig:
    """What both stages' configurations share; in a file their own settings come before these."""

    prompt: str = ""
    """Text that the base's text encoder encodes once. Empty in OMGSR; the paper has a c and does not say."""
    prompt_embeds: str = ""
    """A safetensors file with an embedding (1, L, D) of your own, instead of a text. Ours."""
    prompt_tokens: int = 0
    """How many tokens of the prompt are kept, the first ones; 0 for all. Where text goes through every block
    beside the picture (SD 3, FLUX), one or eight of an empty prompt cost less than 333 or 512. Ours."""
    posterior: str = "sample"
    """sample or mode of E's distribution. The lineage samples in training; the runtime takes the mode."""
    init: str = ""
    """Folder of an adapter of the same base and shape whose weights to start from; empty for fresh ones.
    Ours."""
    init_discriminator: str = ""
    """Folder of a run's checkpoint (`OUT.run/step-NNNNNN`) whose D to start from. Ours."""
    lora: Lora = field(default_factory=Lora)
    data: Pictures = field(default_factory=Data)
    softness: Softness = field(default_factory=Softness)
    degradation: Recipe = field(default_factory=RealESRGAN)
    loss: LossWeights = field(default_factory=LossWeights)
    dists: DistsConfig = field(default_factory=DistsConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    validation: Validation = field(default_factory=Validation)
    optimization: Optimization = field(default_factory=Optimization)

    def __post_init__(self) -> None:
        _require(self, "", 0, "prompt_tokens")
        _require_posterior(self.posterior)


@dataclass(frozen=True)
class Stage1Config(AdapterConfig):
    """`tudsr train stage1`: Algorithm 1."""

    base: str = ""
    """Folder or hub id of the base, in the diffusers layout. Paper 4.1: SD2.1-base."""
    out: str = ""
    """Folder of the adapter; the run's state lies beside it, in `out`.run. `--out` comes first."""
    seed: int = 0
    """Seed of the first weights and of every draw. Ours; OMGSR has 123."""
    R: int = 512
    """Side of a training picture, pixels. Paper 3.7."""
    M: tuple[int, ...] = (4,)
    """Upsampling factors that training pairs are drawn from. 4 in the lineage (OSEDiff, OMGSR)."""
    t1: int = 200
    """Fixed timestep. Paper 4.1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shared(self)
        _require(self, "", 0, "t1")


@dataclass(frozen=True)
class Stage2Config(AdapterConfig):
    """`tudsr train stage2`: Algorithm 2."""

    base: str = ""
    """Folder or hub id of the base, the one that stage 1 was trained on."""
    stage1: str = ""
    """Folder of the stage-1 adapter, frozen here."""
    out: str = ""
    """Folder of the adapter; the run's state lies beside it, in `out`.run. `--out` comes first."""
    seed: int = 0
    """Seed of the first weights and of every draw. Ours; OMGSR has 123."""
    R: int = 512
    """Side of a chunk, and of x_L, pixels. Paper 3.8."""
    M: tuple[int, ...] = (4,)
    """Upsampling factors of the first stage that training pairs are drawn from. 4 in the lineage."""
    N: int = 2
    """Upsampling factor of this stage; a picture has N^2 chunks. Paper 4.1."""
    t1: int = 200
    """Timestep of the first stage, for an adapter that has no record of its own. Paper 4.1."""
    t2: int = 50
    """Fixed timestep. Paper 4.1."""
    accumulate: str = "chunks"
    """What `optimization.accumulation` counts: chunks (a chunk takes the image's place as micro-batch),
    images (all N^2 chunks of each), or none (an optimizer step after every chunk). The paper's
    "gradient updates per chunk" allows all three; with chunks both stages step alike."""
    optimization: Optimization = field(default_factory=lambda: Optimization(steps=3500))

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_shared(self)
        _require(self, "", 0, "t1", "t2")
        _require(self, "", 1, "N")


@dataclass(frozen=True)
class LightDecoderConfig:
    """The network that is distilled."""

    size: str = "half"
    """half (the base's own decoder with fewer channels) or tiny (TAESD's: 64 channels throughout, no norms,
    no attention). Ours."""
    width: float = 0.5
    """Channels of `half` as a share of the base's own. Ours."""

    def __post_init__(self) -> None:
        if self.size not in ("half", "tiny"):
            raise TrainingError(f"model: size is {self.size!r}; half and tiny are known")
        if not 0 < self.width <= 1:
            raise TrainingError(f"model: width is a share above 0 and up to 1, not {self.width}")


@dataclass(frozen=True)
class DecoderConfig:
    """`tudsr train decoder`: a light decoder, distilled from the base's own. Not in the paper."""

    base: str = ""
    """Folder or hub id of the base whose decoder is to be copied, in the diffusers layout."""
    out: str = ""
    """Folder of the result; its state lies beside it, in `out`.run. `--out` comes first."""
    seed: int = 0
    """Seed of the first weights and of every draw. Ours."""
    R: int = 256
    """Side of a training picture, pixels. Ours; most of a decoder looks no further."""
    model: LightDecoderConfig = field(default_factory=LightDecoderConfig)
    degraded_prob: float = 0.3
    """Share of batches whose latents are of degraded pictures, enlarged by M. Ours."""
    M: tuple[int, ...] = (4,)
    """Upsampling factors of these. Ours."""
    posterior: str = "sample"
    """sample or mode of E's distribution. Ours: no latent of a backbone is exact either."""
    data: Pictures = field(default_factory=Data)
    softness: Softness = field(default_factory=Softness)
    degradation: Recipe = field(default_factory=RealESRGAN)
    loss: LossWeights = field(default_factory=LossWeights)
    dists: DistsConfig = field(default_factory=DistsConfig)
    validation: Validation = field(default_factory=Validation)
    optimization: Optimization = field(
        default_factory=lambda: Optimization(
            steps=50_000, batch_size=4, accumulation=1, lr=2e-4, schedule="cosine", ema=0.999
        )
    )

    def __post_init__(self) -> None:
        _check_shared(self)
        _require_posterior(self.posterior)
        if not 0 <= self.degraded_prob <= 1:
            raise TrainingError(f"degraded_prob is a share from 0 to 1, not {self.degraded_prob}")
        if self.loss.gan:
            raise TrainingError(f"loss.gan is {self.loss.gan}, but a decoder is trained without an adversary")


@dataclass(frozen=True)
class PairsConfig:
    """`tudsr train pairs`: what a teacher makes of degraded crops, kept as pairs. Not in the paper."""

    teacher: str = ""
    """The bundle that restores the crops: a folder, an installed bundle's name, or `hf:OWNER/NAME`."""
    out: str = ""
    """Folder of the pairs: LR/ and HR/, for `source: paired`. `--out` comes first."""
    seed: int = 0
    """Seed of every draw. Ours."""
    scale: int = 4
    """How many times the teacher enlarges; a crop is reduced by as much. Ours."""
    side: int = 256
    """Side of a crop, pixels, a multiple of `scale`. Ours."""
    count: int = 1000
    """Pairs. Ours."""
    threads: int = 0
    """CPU threads of the teacher; 0 leaves it to the back end. Ours."""
    data: Pictures = field(default_factory=Data)
    softness: Softness = field(default_factory=Softness)
    degradation: Recipe = field(default_factory=RealESRGAN)

    def __post_init__(self) -> None:
        if not self.teacher:
            raise TrainingError("teacher: no bundle is named", hint="a folder that tudsr export has made")
        _require(self, "", 0, "seed", "threads")
        _require(self, "", 1, "scale", "side", "count")
        if self.side % self.scale or self.side // self.scale < LEAST_LQ:
            raise TrainingError(
                f"side is {self.side}, which at scale {self.scale} leaves no whole crop of {LEAST_LQ} px"
            )
        if self.count > MOST_COUNT or self.side > MOST_R:
            raise TrainingError(f"count must be at most {MOST_COUNT:,} and side at most {MOST_R}")


StageConfig = BaseConfig | Stage1Config | Stage2Config | DecoderConfig


def _require_posterior(name: str) -> None:
    if name not in ("sample", "mode"):
        raise TrainingError(f"posterior is {name!r}; sample and mode are known")


def _check_shared(config: StageConfig) -> None:
    _require(config, "", 0, "seed")
    _require(config, "", 1, "R", "M", *({"N"} & {*vars(config)}))
    _require(config.loss, "loss: ", 0, *vars(config.loss))
    if not any(vars(config.loss).values()):
        raise TrainingError("loss: all weights are 0, so there is nothing to learn from")
    if config.R > MOST_R:
        raise TrainingError(f"R must be at most {MOST_R}, not {config.R}")
    _check_factors(config)
    _check_softness(config)


def _check_factors(config: StageConfig) -> None:
    """Every picture must be reducible to whole pixels, and something must be left of it."""
    factors = (*config.M, config.N) if isinstance(config, BaseConfig) else config.M
    if not factors or not config.M or max(factors) * LEAST_LQ > config.R:
        raise TrainingError(
            f"M must name factors that leave {LEAST_LQ} px of R = {config.R}, not {list(config.M)}"
        )
    odd = [factor for factor in factors if config.R % factor]
    if odd:
        raise TrainingError(f"R must be a multiple of every factor: {config.R} is none of {odd[0]}")
    recipes = (
        config.degradation.parts if isinstance(config.degradation, MixedRecipe) else (config.degradation,)
    )
    for recipe in recipes:
        if isinstance(recipe, RealESRGAN):
            least = min(recipe.resize_range[0] * config.R, recipe.resize_range2[0] * config.R / max(factors))
            if least < 1:
                raise TrainingError(f"degradation: its resize ranges leave {least:.2g} px of R = {config.R}")


def _check_softness(config: StageConfig) -> None:
    softness = config.softness
    recipes = (config.degradation, config.mild) if isinstance(config, BaseConfig) else (config.degradation,)
    if softness.prob and softness != Softness() and not any(softens(config.data, r) for r in recipes):
        raise TrainingError(
            "softness is for synthetic pictures, alone with the nano or camera recipe or in a mixture; here "
            "it would change nothing",
            hint="leave it out, or softness: {prob: 0}",
        )
