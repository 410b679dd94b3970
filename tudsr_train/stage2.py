"""`tudsr train stage2`: the paper's Algorithm 2. A second LoRA at NR-resolution, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tudsr_runtime.errors import TrainingError
from tudsr_runtime.files import file_sha256
from tudsr_train.adapters import WEIGHTS_FILE, load_adapter
from tudsr_train.config import Stage2Config
from tudsr_train.data.pairs import Task
from tudsr_train.gan import Adversaries
from tudsr_train.generator import Generator
from tudsr_train.run.loop import Loss
from tudsr_train.training import AdapterTraining


def algorithm_2(
    gan: Adversaries, x_L: Tensor, y_H: Tensor, t_1: int, t_2: int, R: int, N: int
) -> Iterator[Loss]:
    """Yield L_G, then L_D of every chunk in turn. Implements Algorithm 2 for (theta_2, phi_2).

    Each `yield` is a Backward, as in `algorithm_1`. It frees the chunk's graph before the next chunk is
    computed: peak memory is stage 1's, not N^2 times it.

    Args:
        x_L: (B, 3, R, R) in [-1, 1].
        y_H: (B, 3, N R, N R) in [-1, 1].
    """
    m = first_stage(gan, x_L, t_1)
    y_L = upsampling(m, N)
    for y_L_i, y_H_i in zip(chunking(y_L, R), chunking(y_H, R), strict=True):
        y_hat_i = gan.G(y_L_i, t_2)
        with gan.D_frozen():
            logits_gen = gan.D(y_hat_i)
            yield gan.L_G(y_hat_i, y_H_i, logits_gen)  # theta_2 <- Backward(L_G)
        if gan.discriminator:
            logits_fake = gan.D(y_hat_i.detach())
            logits_real = gan.D(gan.real(y_H_i))
            yield gan.L_D(logits_fake, logits_real)  # phi_2 <- Backward(L_D)


def first_stage(gan: Adversaries, x_L: Tensor, t_1: int) -> Tensor:
    """m = G*_theta_1(x_L, t_1, c), by the frozen adapter of stage 1; that of stage 2 is active afterwards."""
    gan.generator.use("stage1")
    with torch.no_grad():
        m = gan.G(x_L, t_1).x
    gan.generator.use("stage2")
    return m


def upsampling(m: Tensor, N: int) -> Tensor:
    """y_L = Upsampling(m, N), bilinear: (B, C, H, W) to (B, C, N H, N W). Implements Eq. (10)."""
    return F.interpolate(m, scale_factor=N, mode="bilinear", align_corners=False)


def chunking(y: Tensor, R: int) -> Iterator[Tensor]:
    """Cut (B, C, N R, N R) into N^2 chunks (B, C, R, R), row by row. Implements Eq. (11)."""
    height, width = y.shape[-2:]
    if height % R or width % R:
        raise ValueError(f"a picture of {height} x {width} px does not divide into chunks of {R} px")
    for top in range(0, height, R):
        for left in range(0, width, R):
            yield y[..., top : top + R, left : left + R]


def joining(chunks: list[Tensor], N: int) -> Tensor:
    """Undo `chunking`: N^2 chunks (B, C, R, R), row by row, to (B, C, N R, N R)."""
    rows = [torch.cat(chunks[row * N : (row + 1) * N], dim=-1) for row in range(N)]
    return torch.cat(rows, dim=-2)


def backwards_per_step(config: Stage2Config) -> int:
    """How many chunks make an optimizer step, by `accumulate`."""
    kinds = {
        "chunks": config.optimization.accumulation,
        "images": config.optimization.accumulation * config.N**2,
        "none": 1,
    }
    if config.accumulate not in kinds:
        raise TrainingError(f"accumulate is {config.accumulate!r}; {', '.join(kinds)} are known")
    return kinds[config.accumulate]


class Stage2(AdapterTraining[Stage2Config]):
    """A run of stage 2, behind a frozen stage 1."""

    t_1: int
    """The first stage's, by its record where it has one."""

    @property
    def losses_per_pair(self) -> int:
        return self.config.N**2

    @property
    def accumulation(self) -> int:
        return backwards_per_step(self.config)

    @property
    def task(self) -> Task:
        N, R = self.config.N, self.config.R
        return Task(N * R, tuple(M * N for M in self.config.M), R)

    def prepare(self) -> tuple[Generator, dict[str, nn.Parameter], dict[str, str]]:
        G, stage1 = self.load_base(), self.config.stage1
        record = load_adapter(G, stage1, "stage1")
        self.t_1 = record.timestep if record else self.config.t1
        parents = {"base": G.base_sha256, "stage1": file_sha256(Path(stage1) / WEIGHTS_FILE)}
        return G, self.add_adapter(G, "stage2"), parents

    def algorithm(self, number: int, x_L: Tensor, x_H: Tensor) -> Iterator[Loss]:  # noqa: ARG002
        c = self.config
        return algorithm_2(self.gan, x_L, x_H, self.t_1, c.t2, c.R, c.N)

    def columns(self, x_L: Tensor) -> dict[str, Tensor]:
        m = first_stage(self.gan, x_L, self.t_1)
        chunks = chunking(upsampling(m, self.config.N), self.config.R)
        y_hat = [self.gan.G(y_L_i, self.config.t2).x for y_L_i in chunks]
        return {"stage 1": m, "stage 2": joining(y_hat, self.config.N)}

    def write(self, folder: Path) -> None:
        self.save(folder, 2, self.config.t2, self.config.N)


def train_stage2(config: Stage2Config, out: Path, resume: str) -> None:
    """Train the stage-2 adapter behind a frozen stage 1 and write it to `out`; else as `train_stage1`."""
    Stage2(config, out).run(resume)
