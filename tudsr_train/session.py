"""One run of a stage: what its configuration names, put together, checked, and written in the end."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tudsr_runtime.atomic import atomic_dir, atomic_write, require_replaceable
from tudsr_runtime.errors import OutputError, TrainingError
from tudsr_runtime.machine import bounded_threads
from tudsr_train.adapters import (
    RECORD_FILE,
    WEIGHTS_FILE,
    adapter_parameters,
    add_adapter,
    add_vae_encoder_adapter,
    copy_adapter,
    record_of,
    save_adapter,
)
from tudsr_train.config import BaseConfig, Lora, Optimization, Stage1Config, Stage2Config
from tudsr_train.config_file import to_tree, to_yaml
from tudsr_train.data.pairs import Task
from tudsr_train.data.recipes import Recipe
from tudsr_train.data.sources import training_pairs
from tudsr_train.discriminators.base import Discriminator, adversarial_loss, build_discriminator
from tudsr_train.gan import Adversaries
from tudsr_train.generator import PROMPT_FILE as BASE_FILE
from tudsr_train.generator import Generator
from tudsr_train.losses.adversarial import AdversarialLoss
from tudsr_train.losses.reconstruction import Losses
from tudsr_train.run import checkpoint
from tudsr_train.run.log import GIB, peak_memory, say, usable_trackers
from tudsr_train.run.loop import Algorithm, Loop, Network, seed_draws
from tudsr_train.run.precision import prepare
from tudsr_train.run.processes import join
from tudsr_train.run.validation import Grid

VALIDATION_SEED = 1_000_003
"""Added to a run's seed for its validation pictures."""

Pairs = Dataset[tuple[Tensor, Tensor]]


class Heads(Network):
    """D as the loop sees it: a checkpoint also holds what its spectral norms have iterated to."""

    def __init__(self, discriminator: Discriminator, lr: float, optimization: Optimization) -> None:
        super().__init__("discriminator", discriminator.trainable(), lr, optimization)
        self.discriminator = discriminator

    def state(self) -> dict[str, Tensor]:
        return self.discriminator.checkpoint_state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.discriminator.load_checkpoint_state(state)


class Session:
    """The surroundings of a training: processes, device, folders.

    Args:
        config: of the stage.
        out: folder of the result; the run's state lies beside it, in `out` + ".run".
    """

    def __init__(self, config: BaseConfig | Stage1Config | Stage2Config, out: Path) -> None:
        _require_own_folder(config, out)
        self.config, self.out, self.folder = config, out, out.with_name(out.name + ".run")
        trackers, notes = usable_trackers(config.optimization.trackers)
        self.accelerator = join(config.optimization.device, self.folder, trackers)
        self.device = self.accelerator.device
        bounded_threads(config.optimization.threads, notes.append)
        for note in [self._where(), *notes]:
            say(self.accelerator, note)

    def _where(self) -> str:
        wanted, count = self.config.optimization.device, self.accelerator.num_processes
        reason = "the only one that torch sees" if self.device.type == "cpu" else "torch sees it"
        name = f" ({torch.cuda.get_device_name(self.device)})" if self.device.type == "cuda" else ""
        return (
            f"training on {self.device}{name}, {'as asked for' if wanted != 'auto' else reason}; "
            f"{count} process{'es' if count > 1 else ''}, {self.config.optimization.precision}"
        )

    def generator(self, config: Stage1Config | Stage2Config) -> Generator:
        """The base with the configuration's prompt; torch is seeded for what is drawn next."""
        torch.manual_seed(config.seed)
        return Generator.load(config.base, config.prompt, config.prompt_embeds)

    def add_adapter(self, G: Generator, name: str, lora: Lora, init: str = "") -> dict[str, nn.Parameter]:
        """Attach an adapter, make it the active one, and return its weights: fresh, or those of `init`.

        Raises BundleError where `init` is no adapter or of another base, TrainingError where its layers or
        its rank are others.
        """
        add_adapter(G, name, lora.rank, lora.target_modules)
        if lora.vae_encoder_rank:
            add_vae_encoder_adapter(G, name, lora.vae_encoder_rank)
        theta = adapter_parameters(G, name)
        if init:
            copy_adapter(G, theta, name, Path(init))
        return theta

    def adversaries(self, G: Generator) -> Adversaries:
        """G on its device, with the losses and the discriminator of the configuration.

        Raises TrainingError for a discriminator without a weight, or a weight without a discriminator.
        """
        config, o = self.config, self.config.optimization
        _require_whole_cells(G, config.R)
        prepare(G, o, self.device)
        losses = Losses.build(config.loss, config.dists).to(self.device)
        if isinstance(config, BaseConfig):
            return Adversaries(G, None, losses, AdversarialLoss(), o, "mode")
        if (config.discriminator.kind != "none") != bool(config.loss.gan):
            raise TrainingError(
                f"discriminator.kind is {config.discriminator.kind}, but loss.gan is {config.loss.gan}",
                hint="the paper has kind dinov3 and gan 0.5; without a discriminator, none and 0",
            )
        D = None
        if config.discriminator.kind != "none":
            D = build_discriminator(config.discriminator, G, config.seed)
            if config.init_discriminator:
                D.load_checkpoint_state(_discriminator_of(Path(config.init_discriminator)))
            D.to(self.device)
        return Adversaries(G, D, losses, adversarial_loss(config.discriminator), o, config.posterior)

    def loop(
        self,
        gan: Adversaries,
        theta: dict[str, nn.Parameter],
        parents: dict[str, str],
        losses_per_pair: int = 1,
        accumulation: int = 0,
    ) -> Loop:
        """The loop over theta and, where there is a D, phi."""
        o = self.config.optimization
        networks = [Network("generator", theta, o.lr, o)]
        if gan.discriminator:
            networks.append(Heads(gan.discriminator, o.lr_discriminator or o.lr, o))
        return Loop(
            self.folder,
            networks,
            o,
            self.accelerator,
            seed=self.config.seed,
            losses_per_pair=losses_per_pair,
            accumulation=accumulation or o.accumulation,
            settings=to_tree(self.config),
            parents=parents,
        )

    def pairs(self, config: Stage1Config | Stage2Config, task: Task, loop: Loop) -> Pairs:
        """All pairs of the run, by number; the first process looks at the data before the others do."""
        length = loop.batches * config.optimization.batch_size
        with self.accelerator.main_process_first():
            return self.draw(config, task, config.seed, length)

    def grid(
        self,
        config: BaseConfig | Stage1Config | Stage2Config,
        task: Task,
        columns: Callable[[Tensor], dict[str, Tensor]],
    ) -> Grid:
        """Validation pictures: of `validation.path`, else what is held out of the data, else of the same from
        another seed."""
        seed, count = config.seed + VALIDATION_SEED, config.validation.images
        shown = replace(config, data=config.validation.data(config.data))
        return Grid(lambda: self.draw(shown, task, seed, count, held_out=True), columns, self.device)

    def draw(
        self,
        config: BaseConfig | Stage1Config | Stage2Config,
        task: Task,
        seed: int,
        length: int,
        recipe: Recipe | None = None,
        held_out: bool = False,
    ) -> Pairs:
        """Pairs of the configuration's data by its degradation, or by another `recipe`."""
        tell = functools.partial(say, self.accelerator)
        recipe = recipe or config.degradation
        return training_pairs(
            config.data, task, config.softness, recipe, seed, length, self.folder, tell, held_out
        )

    def go(self, loop: Loop, pairs: Pairs, algorithm: Algorithm, resume: str) -> None:
        """Train from where `resume` says to the last step, beside a copy of the resolved configuration."""
        loop.resume(resume)
        if self.accelerator.is_main_process:
            _make(self.folder)
            with atomic_write(self.folder / "config.yaml") as file:
                file.write(to_yaml(self.config).encode())
        loop.run(pairs, algorithm)

    def check(self, loop: Loop, pairs: Pairs, algorithm: Algorithm) -> list[str]:
        """Go through one batch, backward and all, without an update; what was found, a line each.

        Raises TrainingError where a loss is not finite.
        """
        batch = [pairs[number] for number in range(self.config.optimization.batch_size)]
        x_L, x_H = (torch.stack(side).to(self.device) for side in zip(*batch, strict=True))
        seed_draws(self.config.seed, 0)
        found = [f"data: x_L {tuple(x_L.shape)}, x_H {tuple(x_H.shape)}"]
        for network in loop.networks:
            count = sum(p.numel() for p in network.parameters.values())
            found.append(f"weights: {network.name}, {count / 1e6:.3f} M trained")
        for loss in itertools.islice(algorithm(0, x_L, x_H), len(loop.networks)):
            if not loss.value.isfinite():
                raise TrainingError(f"the {loss.network}'s loss is {loss.value.item()} on the first pair")
            loss.value.backward()
            found.append("  ".join([f"losses: {loss.network}", *_shown(loss.terms)]))
        return [*found, f"memory: {peak_memory(self.device) / GIB:.2f} GiB at most, on {self.device}"]

    def write_adapter(self, loop: Loop, G: Generator, stage: int, timestep: int, factor: int) -> None:
        """Write the trained adapter as the run's result, in the first process."""
        if self.accelerator.is_main_process:
            name, own = f"stage{stage}", RECORD_FILE
            with loop.networks[0].averaged(), atomic_dir(self.out, overwrite=True, own=own) as folder:
                save_adapter(G, name, folder, record_of(G, name, stage, timestep, factor))
        self.finish()

    def finish(self) -> None:
        """Wait for the first process to have written the result, and part."""
        self.accelerator.wait_for_everyone()
        say(self.accelerator, f"wrote {self.out}")
        self.accelerator.end_training()


def _discriminator_of(folder: Path) -> dict[str, Tensor]:
    """D in a checkpoint; TrainingError where there is no checkpoint, or none of a run with a D."""
    networks = checkpoint.load(folder).networks
    if "discriminator" not in networks:
        raise TrainingError(f"init_discriminator: {folder} is of a run without a discriminator")
    return networks["discriminator"]


def _require_own_folder(config: BaseConfig | Stage1Config | Stage2Config, out: Path) -> None:
    """The result replaces its folder, which must hold an earlier one or nothing; seen before the training."""
    if out.name in ("", ".."):
        raise OutputError(f"the result needs a folder of its own, not {out}", hint="--out DIR, by its name")
    require_replaceable(out, BASE_FILE if isinstance(config, BaseConfig) else RECORD_FILE)
    for key in ("base", "stage1", "start", "init"):
        given = getattr(config, key, "")
        if given and Path(given).expanduser().resolve() == out.resolve():
            raise OutputError(
                f"{out} is this run's {key}, which its result would replace", hint="another --out"
            )


def _require_whole_cells(G: Generator, R: int) -> None:
    multiple = G.pixels_per_cell * 2 ** (len(G.unet.config.block_out_channels) - 1)
    if R % multiple or G.latent_margin * G.pixels_per_cell >= R:
        raise TrainingError(
            f"R is {R}, but {G.base_id} needs a multiple of {multiple}, larger than its margin"
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error


def _shown(terms: dict[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in terms.items()]


def sha256_of_adapter(folder: str | Path) -> str:
    """Hash of an adapter's weights, by which a checkpoint knows what it stands on."""
    return hashlib.sha256((Path(folder) / WEIGHTS_FILE).read_bytes()).hexdigest()
