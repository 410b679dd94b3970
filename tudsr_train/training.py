"""One run of a stage: what its configuration names, put together, checked, and written in the end."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tudsr_runtime.atomic import atomic_dir, atomic_write, require_replaceable
from tudsr_runtime.errors import OutputError, TrainingError
from tudsr_runtime.files import make_folder
from tudsr_runtime.machine import bounded_threads
from tudsr_train.adapters import (
    ADAPTER_RECORD_FILE,
    adapter_parameters,
    add_adapter,
    add_vae_encoder_adapter,
    copy_adapter,
    record_of,
    save_adapter,
)
from tudsr_train.config import Optimization, Stage1Config, Stage2Config, StageConfig
from tudsr_train.config_file import to_tree, to_yaml
from tudsr_train.data.pairs import PairDataset, Task
from tudsr_train.data.recipes import Recipe
from tudsr_train.data.sources import Pictures, training_pairs
from tudsr_train.discriminators.base import Discriminator, adversarial_loss, build_discriminator
from tudsr_train.gan import Adversaries
from tudsr_train.generator import Generator
from tudsr_train.losses.adversarial import AdversarialLoss
from tudsr_train.losses.dists_name import dists_name
from tudsr_train.losses.reconstruction import Losses
from tudsr_train.run import checkpoint
from tudsr_train.run.log import GIB, peak_memory, say, usable_trackers
from tudsr_train.run.loop import Loop, Loss, Network, seed_draws
from tudsr_train.run.precision import prepare
from tudsr_train.run.processes import join
from tudsr_train.run.validation import Grid

CONFIG_FILE = "config.yaml"
"""The resolved configuration, in the folder of a run."""
VALIDATION_SEED = 1_000_003
"""Added to a run's seed for its validation pictures."""

C = TypeVar("C", bound=StageConfig)
A = TypeVar("A", bound=Stage1Config | Stage2Config)


class Heads(Network):
    """D as the loop sees it: a checkpoint also holds what its spectral norms have iterated to."""

    def __init__(self, discriminator: Discriminator, lr: float, optimization: Optimization) -> None:
        super().__init__("discriminator", discriminator.trainable(), lr, optimization)
        self.discriminator = discriminator

    def state(self) -> dict[str, Tensor]:
        return self.discriminator.checkpoint_state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.discriminator.load_checkpoint_state(state)


class Training(Generic[C]):
    """One run of `tudsr train`: what its configuration names, put together, then trained or checked.

    A subclass says what is trained (`prepare`), against which D (`opponent`), on which pairs (`task`), from
    which losses (`algorithm`), what validation shows (`columns`), and what the result is (`write`).

    Args:
        config: of the stage.
        out: folder of the result; the run's state lies beside it, in `out` + ".run".
        overwrite: whether a result may be replaced that no run beside it has made.

    Raises:
        OutputError: `out` is none that the result may replace. DeviceError: no such device. TrainingError:
        bad data, or settings that do not fit. BundleError: base or adapter.
    """

    result_file: ClassVar[str] = ADAPTER_RECORD_FILE
    """A file that every result has, by which an earlier one is known."""

    def __init__(self, config: C, out: Path, overwrite: bool = False) -> None:
        _require_own_folder(config, out, self.result_file)
        if not overwrite:
            _require_own_result(out, self.result_file)
        self.config, self.out, self.folder = config, out, out.with_name(out.name + ".run")
        trackers, notes = usable_trackers(config.optimization.trackers)
        self.accelerator = join(config.optimization.device, self.folder, trackers)
        self.device = self.accelerator.device
        bounded_threads(config.optimization.threads, notes.append)
        for note in [self._where(), *notes]:
            say(self.accelerator, note)
        G, theta, parents = self.prepare()
        self.gan = self._adversaries(G)
        self.loop = self._loop(theta, parents)
        # the first process looks at the data before the others do
        with self.accelerator.main_process_first():
            self.pairs = self.training_pairs(self.loop.batches * config.optimization.batch_size)

    def prepare(self) -> tuple[Generator, dict[str, nn.Parameter], dict[str, str]]:
        """G, the weights of it that are trained, by name, and the hashes of what the run stands on."""
        raise NotImplementedError

    def opponent(self, G: Generator) -> tuple[Discriminator | None, AdversarialLoss, str]:  # noqa: ARG002
        """D, where there is one, the loss against it, and which latent of E's distribution is taken."""
        return None, AdversarialLoss(), "mode"

    @property
    def task(self) -> Task:
        """How a training pair is made."""
        return Task(self.config.R, self.config.M, self.config.R)

    @property
    def losses_per_pair(self) -> int:
        """How many losses each network gets per batch."""
        return 1

    @property
    def accumulation(self) -> int:
        """Losses of each network per optimizer step."""
        return self.config.optimization.accumulation

    def training_pairs(self, length: int) -> PairDataset:
        """All pairs of the run, by number."""
        return self.draw(self.config.data, self.task, self.config.degradation, self.config.seed, length)

    def validation_pairs(self) -> PairDataset:
        """Validation pictures: of `validation.path`, else what is held out of the data, else of the same from
        another seed."""
        config, seed = self.config, self.config.seed + VALIDATION_SEED
        data, count = config.validation.data(config.data), config.validation.images
        return self.draw(data, self.task, config.degradation, seed, count, held_out=True)

    def algorithm(self, number: int, x_L: Tensor, x_H: Tensor) -> Iterator[Loss]:
        """Yield the losses of batch `number`, as `Loop` asks for them."""
        raise NotImplementedError

    def columns(self, x_L: Tensor) -> dict[str, Tensor]:
        """Results for x_L (1, 3, R, R) by name, in the order of the stages; without a gradient."""
        raise NotImplementedError

    def write(self, folder: Path) -> None:
        """Write the result into an empty folder."""
        raise NotImplementedError

    def run(self, resume: str) -> None:
        """Train from where `resume` says to the last step, then write the result.

        The resolved configuration goes beside the run's state.
        """
        self.loop.resume(resume)
        if self.accelerator.is_main_process:
            make_folder(self.folder)
            with atomic_write(self.folder / CONFIG_FILE) as file:
                file.write(to_yaml(self.config).encode())
        self.loop.run(self.pairs, self.algorithm)
        if self.accelerator.is_main_process:
            averaged = self.loop.networks[0].averaged()
            with averaged, atomic_dir(self.out, overwrite=True, own=self.result_file) as folder:
                self.write(folder)
                if self.config.optimization.store == "fp16":
                    _halve(folder)
        self.accelerator.wait_for_everyone()
        say(self.accelerator, f"wrote {self.out}")
        self.accelerator.end_training()

    def check(self) -> list[str]:
        """Go through one batch, backward and all, without an update; what was found, a line each.

        Writes nothing. Raises TrainingError where a loss is not finite.
        """
        batch = [self.pairs[number] for number in range(self.config.optimization.batch_size)]
        x_L, x_H = (torch.stack(side).to(self.device) for side in zip(*batch, strict=True))
        seed_draws(self.config.seed, 0)
        found = [f"data: x_L {tuple(x_L.shape)}, x_H {tuple(x_H.shape)}"]
        for network in self.loop.networks:
            count = sum(p.numel() for p in network.parameters.values())
            found.append(f"weights: {network.name}, {count / 1e6:.3f} M trained")
        for loss in itertools.islice(self.algorithm(0, x_L, x_H), len(self.loop.networks)):
            if not loss.value.isfinite():
                raise TrainingError(f"the {loss.network}'s loss is {loss.value.item()} on the first pair")
            loss.value.backward()
            found.append("  ".join([f"losses: {loss.network}", *_shown(loss.terms)]))
        return [*found, f"memory: {peak_memory(self.device) / GIB:.2f} GiB at most, on {self.device}"]

    def draw(
        self, data: Pictures, task: Task, recipe: Recipe, seed: int, length: int, held_out: bool = False
    ) -> PairDataset:
        """Pairs of `data` by a recipe, as `training_pairs` of `tudsr_train.data.sources` makes them."""
        notify = functools.partial(say, self.accelerator)
        softness = self.config.softness
        return training_pairs(data, task, softness, recipe, seed, length, self.folder, notify, held_out)

    def _where(self) -> str:
        wanted, count = self.config.optimization.device, self.accelerator.num_processes
        reason = "the only one that torch sees" if self.device.type == "cpu" else "torch sees it"
        name = f" ({torch.cuda.get_device_name(self.device)})" if self.device.type == "cuda" else ""
        return (
            f"training on {self.device}{name}, {'as asked for' if wanted != 'auto' else reason}; "
            f"{count} process{'es' if count > 1 else ''}, {self.config.optimization.precision}"
        )

    def _adversaries(self, G: Generator) -> Adversaries:
        """G on its device, with the losses and the discriminator of the configuration."""
        config, o = self.config, self.config.optimization
        _require_whole_cells(G, config.R)
        prepare(G, o, self.device)
        losses = Losses.build(config.loss, config.dists).to(self.device)
        D, adversarial, posterior = self.opponent(G)
        return Adversaries(G, D.to(self.device) if D else None, losses, adversarial, o, posterior)

    def _loop(self, theta: dict[str, nn.Parameter], parents: dict[str, str]) -> Loop:
        """The loop over theta and, where there is a D, phi."""
        config, o = self.config, self.config.optimization
        networks = [Network("generator", theta, o.lr, o)]
        if self.gan.discriminator:
            networks.append(Heads(self.gan.discriminator, o.lr_discriminator or o.lr, o))
        return Loop(
            self.folder,
            networks,
            o,
            self.accelerator,
            seed=config.seed,
            losses_per_pair=self.losses_per_pair,
            accumulation=self.accumulation,
            settings=to_tree(config),
            parents=parents,
            validate=self._grid(),
            validate_every=config.validation.every,
            best=config.validation.best,
        )

    def _grid(self) -> Grid:
        """What shows validation pictures."""
        config, dists = self.config, self.gan.losses.dists
        distance = (dists_name(config.dists.vgg16), dists) if dists is not None else None
        return Grid(self.validation_pairs, self.columns, self.device, distance)


class AdapterTraining(Training[A]):
    """What stages 1 and 2 share: a LoRA on a frozen base is trained, against a discriminator."""

    def load_base(self) -> Generator:
        """The base with the configuration's prompt; torch is seeded for what is drawn next."""
        torch.manual_seed(self.config.seed)
        c = self.config
        return Generator.load(c.base, c.prompt, c.prompt_embeds, c.prompt_tokens)

    def add_adapter(self, G: Generator, name: str) -> dict[str, nn.Parameter]:
        """Attach an adapter, make it the active one, and return its weights: fresh, or those of `init`.

        Raises BundleError where `init` is no adapter or of another base, TrainingError where its layers or
        its rank are others.
        """
        lora = self.config.lora
        add_adapter(G, name, lora.rank, G.backbone.lora_targets[lora.targets])
        if lora.vae_encoder_rank:
            add_vae_encoder_adapter(G, name, lora.vae_encoder_rank)
        theta = adapter_parameters(G, name)
        if self.config.init:
            copy_adapter(G, theta, name, Path(self.config.init))
        return theta

    def opponent(self, G: Generator) -> tuple[Discriminator | None, AdversarialLoss, str]:
        """D and what goes with it. TrainingError for a D without a weight in the loss, or the reverse."""
        config, wanted = self.config, self.config.discriminator
        if (wanted.kind != "none") != bool(config.loss.gan):
            raise TrainingError(
                f"discriminator.kind is {wanted.kind}, but loss.gan is {config.loss.gan}",
                hint="the paper has kind dinov3 and gan 0.5; without a discriminator, none and 0",
            )
        D = None
        if wanted.kind != "none":
            D = build_discriminator(wanted, G, config.seed)
            if config.init_discriminator:
                D.load_checkpoint_state(_discriminator_of(Path(config.init_discriminator)))
        return D, adversarial_loss(wanted), config.posterior

    def save(self, folder: Path, stage: int, timestep: int, factor: int) -> None:
        """Write the adapter, in PEFT's layout, with its record."""
        G, name = self.gan.generator, f"stage{stage}"
        save_adapter(G, name, folder, record_of(G, name, stage, timestep, factor))


def _discriminator_of(folder: Path) -> dict[str, Tensor]:
    """D in a checkpoint; TrainingError where there is no checkpoint, or none of a run with a D."""
    networks = checkpoint.load(folder).networks
    if "discriminator" not in networks:
        raise TrainingError(f"init_discriminator: {folder} is of a run without a discriminator")
    return networks["discriminator"]


def _require_own_folder(config: StageConfig, out: Path, result_file: str) -> None:
    """The result replaces its folder, which must hold an earlier one or nothing; seen before the training."""
    if out.name in ("", ".."):
        raise OutputError(f"the result needs a folder of its own, not {out}", hint="--out DIR, by its name")
    require_replaceable(out, result_file)
    for key in ("base", "stage1", "start", "init"):
        given = getattr(config, key, "")
        if given and Path(given).expanduser().resolve() == out.resolve():
            raise OutputError(
                f"{out} is this run's {key}, which its result would replace", hint="another --out"
            )


def _require_own_result(out: Path, result_file: str) -> None:
    """A result without the run that made it, such as one of another machine, cannot be made again."""
    run = out.with_name(out.name + ".run")
    if (out / result_file).is_file() and not (run / CONFIG_FILE).is_file():
        raise OutputError(
            f"{out} holds a result, and {run.name} beside it no run that made it; it is not replaced",
            hint="another --out, or --overwrite",
        )


def _require_whole_cells(G: Generator, R: int) -> None:
    multiple, most = G.multiple, G.backbone.most_cells(G.unet)
    if R % multiple or G.latent_margin * G.pixels_per_cell >= R:
        raise TrainingError(
            f"R is {R}, but {G.base_id} needs a multiple of {multiple}, larger than its margin"
        )
    if most is not None and most * G.pixels_per_cell < R:
        raise TrainingError(
            f"R is {R}, but {G.base_id} knows positions of at most {most * G.pixels_per_cell} px"
        )


def _shown(terms: dict[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in terms.items()]


def _halve(folder: Path) -> None:
    """Round the float32 weights below `folder` to half. The loaders make float32 of them again."""
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
        halved = {key: w.half() if w.dtype == torch.float32 else w for key, w in weights.items()}
        save_file(halved, file, metadata)
