"""The three trainings end to end, tiny: they learn, freeze what they must, and resume exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tudsr_runtime.errors import TrainingError
from tudsr_train.adapters import add_adapter, load_adapter
from tudsr_train.base import train_base
from tudsr_train.chunking import chunking, upsampling
from tudsr_train.command import run
from tudsr_train.config import BaseConfig, Lora, Optimization, Stage1Config, Stage2Config
from tudsr_train.data import Synthetic
from tudsr_train.generator import Generator
from tudsr_train.loop import Loop, lr_factor
from tudsr_train.nano import NanoBase
from tudsr_train.stage1 import train_stage1
from tudsr_train.stage2 import algorithm_2, train_stage2


def _optimization(**changes: object) -> Optimization:
    defaults = {
        "precision": "fp32",
        "workers": 0,
        "accumulation": 1,
        "log_every": 1,
        "save_every": 100,
        "lr": 1e-3,
    }
    return Optimization(**(defaults | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return Synthetic(count=4, size=64, seed=1, cache=str(tmp_path_factory.mktemp("cache")))


def _stage1(base: Path, data: Synthetic, **changes: object) -> Stage1Config:
    return Stage1Config(
        base=str(base), R=32, M=(2,), lora=Lora(rank=4), data=data, optimization=_optimization(**changes)
    )


def _weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_the_whole_recipe_runs_and_everything_frozen_stays(
    data: Synthetic, tiny_model: NanoBase, tmp_path: Path
) -> None:
    train_base(
        BaseConfig(model=tiny_model, data=data, R=32, optimization=_optimization(steps=3)),
        tmp_path / "base",
        "never",
    )
    base = Generator.load(tmp_path / "base")
    assert any(p.abs().max() > 0 for p in base.unet.conv_out.parameters())

    train_stage1(_stage1(tmp_path / "base", data, steps=3), tmp_path / "stage1", "never")
    before = _weights(tmp_path / "stage1")
    config = Stage2Config(
        base=str(tmp_path / "base"), stage1=str(tmp_path / "stage1"), R=32, M=(1,), lora=Lora(rank=4),
        data=data, optimization=_optimization(steps=2, accumulation=4),
    )  # fmt: skip
    train_stage2(config, tmp_path / "stage2", "never")

    assert _weights(tmp_path / "stage1") == before
    G = Generator.load(tmp_path / "base")
    assert G.base_sha256 == base.base_sha256
    first, second = (load_adapter(G, tmp_path / name, name) for name in ("stage1", "stage2"))
    assert first is not None
    assert second is not None
    assert (first.stage, first.timestep, first.factor) == (1, 200, 2)
    assert (second.stage, second.timestep, second.factor) == (2, 50, 2)


def test_stage_2_trains_theta_2_alone(generator: Generator) -> None:
    for name in ("stage1", "stage2"):
        add_adapter(generator, name, 4, Lora().target_modules)
    before = {key: p.detach().clone() for key, p in generator.unet.named_parameters()}
    config = Stage2Config(R=16, optimization=_optimization())
    x_L, y_H = torch.rand(1, 3, 16, 16) * 2 - 1, torch.rand(1, 3, 32, 32) * 2 - 1
    losses = list(_backward_each(algorithm_2(generator, x_L, y_H, 200, config)))
    assert len(losses) == 4
    with_gradient = {key for key, p in generator.unet.named_parameters() if p.grad is not None}
    assert with_gradient
    assert all(".stage2." in key for key in with_gradient)
    assert all(torch.equal(before[key], p) for key, p in generator.unet.named_parameters())


def _backward_each(losses: Iterator[tuple[torch.Tensor, dict[str, float]]]) -> Iterator[float]:
    for loss, _ in losses:
        loss.backward()
        yield loss.item()


def test_the_gradient_of_the_chunk_loop_is_that_of_the_batch_of_chunks(generator: Generator) -> None:
    generator.double()
    for name in ("stage1", "stage2"):
        add_adapter(generator, name, 4, Lora().target_modules)
    generator.double()
    config = Stage2Config(R=16, optimization=_optimization())
    x_L = torch.rand(1, 3, 16, 16, dtype=torch.float64) * 2 - 1
    y_H = torch.rand(1, 3, 32, 32, dtype=torch.float64) * 2 - 1
    parameters = [p for key, p in generator.unet.named_parameters() if ".stage2." in key]
    list(_backward_each(algorithm_2(generator, x_L, y_H, 200, config)))
    looped = [p.grad.clone() / 4 for p in parameters if p.grad is not None]

    generator.unet.zero_grad()
    generator.unet.set_adapter("stage1")
    y_L = upsampling(generator(x_L, 200).detach(), 2)
    generator.unet.set_adapter("stage2")
    y_hat = generator(torch.cat(list(chunking(y_L, 16))), 50)
    (y_hat - torch.cat(list(chunking(y_H, 16)))).abs().mean().backward()
    batched = [p.grad for p in parameters if p.grad is not None]
    assert len(looped) == len(batched)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(looped, batched, strict=True))


def test_chunks_come_row_by_row_and_tile_the_picture() -> None:
    y = torch.arange(36.0).view(1, 1, 6, 6)
    corners = [int(chunk[0, 0, 0, 0]) for chunk in chunking(y, 2)]
    assert corners == [0, 2, 4, 12, 14, 16, 24, 26, 28]
    with pytest.raises(ValueError, match="does not divide"):
        list(chunking(y, 4))


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    data: Synthetic, tiny_base: Path, tmp_path: Path
) -> None:
    train_stage1(_stage1(tiny_base, data, steps=6, save_every=3), tmp_path / "whole", "never")
    train_stage1(_stage1(tiny_base, data, steps=6, save_every=3), tmp_path / "halves", "never")
    run_folder = tmp_path / "halves.run"
    for checkpoint in sorted(run_folder.glob("step-*"))[1:]:
        (checkpoint / "state.pt").unlink()
        checkpoint.rmdir()
    assert [p.name for p in run_folder.glob("step-*")] == ["step-000003"]
    train_stage1(_stage1(tiny_base, data, steps=6, save_every=3), tmp_path / "halves", "auto")
    assert _weights(tmp_path / "halves") == _weights(tmp_path / "whole")


def test_training_lowers_the_loss_on_what_it_sees(generator: Generator, tmp_path: Path) -> None:
    x_L = torch.rand(1, 3, 32, 32) * 2 - 1
    x_H = x_L / 2
    generator.unet.requires_grad_(True)
    loop = Loop(tmp_path, dict(generator.unet.named_parameters()), _optimization(steps=40, save_every=40))
    losses: list[float] = []

    def algorithm(
        _: int, a: torch.Tensor, b: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        loss = (generator(a, 200) - b).abs().mean()
        losses.append(loss.item())
        yield loss, {"mae": loss.item()}

    loop.run([(x_L[0], x_H[0])] * 40, algorithm)  # type: ignore[arg-type]
    assert losses[-1] < 0.75 * losses[0]


def test_a_gradient_that_is_not_finite_is_never_stepped(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    loop = Loop(tmp_path, {"weight": weight}, _optimization(steps=100))

    def algorithm(*_: object) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        yield (weight * float("nan")).sum(), {}

    with pytest.raises(TrainingError, match="21 steps in a row"):
        loop.run([(torch.zeros(1), torch.zeros(1))] * 100, algorithm)  # type: ignore[arg-type]
    assert weight.item() == 1


def test_the_schedules() -> None:
    cosine = _optimization(schedule="cosine", steps=110, warmup=10)
    assert lr_factor(0, cosine) == pytest.approx(0.1)
    assert lr_factor(10, cosine) == 1
    assert lr_factor(60, cosine) == pytest.approx(0.505)
    assert lr_factor(110, cosine) == pytest.approx(0.01)
    assert lr_factor(1000, _optimization()) == 1
    with pytest.raises(TrainingError, match="constant and cosine"):
        lr_factor(0, _optimization(schedule="linear"))


def test_what_cannot_be_meant_is_refused(data: Synthetic, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no checkpoint here"):
        train_stage1(_stage1(tiny_base, data, steps=1), tmp_path / "a", str(tmp_path / "nowhere"))
    with pytest.raises(TrainingError, match="fp16"):
        train_stage1(_stage1(tiny_base, data, steps=1, precision="fp16"), tmp_path / "b", "never")
    config = tmp_path / "c.yaml"
    config.write_text("{}")
    with pytest.raises(TrainingError, match="no result folder"):
        run("stage1", config, [], None, "never")
