"""The loop by itself, on a handful of numbers: accumulation, schedules, failures, signals, the log."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.recipes import optimization
from tudsr_runtime.errors import DeviceError, TrainingError
from tudsr_train.run.log import usable_trackers
from tudsr_train.run.loop import BAD_STEPS, Loop, Loss, Network
from tudsr_train.run.optimization import LOWEST, SCHEDULES, lr_factor
from tudsr_train.run.processes import join

PAIRS: Any = [(torch.tensor([float(n)]), torch.zeros(1)) for n in range(1000)]
"""Pair n is the number n."""


def _loop(folder: Path, networks: int = 1, losses_per_pair: int = 1, **changes: Any) -> Loop:
    o = optimization(**changes)
    names = ["generator", "discriminator"][:networks]
    parts = [Network(name, {"weight": torch.nn.Parameter(torch.ones(1))}, o.lr, o) for name in names]
    return Loop(folder, parts, o, join("cpu", folder), losses_per_pair=losses_per_pair)


def _each(loop: Loop, losses_per_pair: int = 1) -> Any:
    """An algorithm whose gradient is the pair's number, for every network."""

    def algorithm(_: int, x: Tensor, __: Tensor) -> Iterator[Loss]:
        for _chunk in range(losses_per_pair):
            for network in loop.networks:
                value = (network.parameters["weight"] * x).sum()
                yield Loss(network.name, value, {f"L_{network.name}": value.item()})

    return algorithm


def _weights(loop: Loop) -> list[float]:
    return [network.parameters["weight"].item() for network in loop.networks]


@pytest.mark.parametrize(("accumulation", "per_pair", "expected"), [
    (4, 1, [1.5, 5.5, 9.5]),  # 0 0 0 1  0 0 0 1 ...: means of four pairs
    (4, 4, [0, 1, 2]),  # stage 2, chunks: every image is a step
    (8, 4, [0.5, 2.5, 4.5]),
    (1, 4, [0, 0, 0]),  # stage 2, none: three chunks of the first image
])  # fmt: skip
def test_every_step_learns_from_the_mean_of_its_own_losses_up_to_the_last(
    accumulation: int, per_pair: int, expected: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def note(self: Network, *_: object) -> tuple[bool, float]:
        gradient = self.parameters["weight"].grad
        assert gradient is not None
        seen.append(gradient.item())
        self.parameters["weight"].grad, self.backwards = None, 0
        return True, 1.0

    monkeypatch.setattr(Network, "update", note)
    loop = _loop(tmp_path, losses_per_pair=per_pair, accumulation=accumulation, steps=3)
    loop.run(PAIRS, _each(loop, per_pair))
    assert seen == expected
    assert loop.step == 3


def test_each_network_is_clipped_to_its_own_norm(tmp_path: Path) -> None:
    loop = _loop(tmp_path, networks=2, steps=1, max_grad_norm=1e-4, eps=1e-4, lr=1.0, weight_decay=0.0)
    loop.next_batch = 7
    loop.run(PAIRS, _each(loop))
    # Adam's first step is lr g / (|g| + eps), with g clipped to 1e-4: a half
    assert _weights(loop) == pytest.approx([0.5, 0.5], abs=1e-3)
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["gradient_norm/generator"] == record["gradient_norm/discriminator"] == 7


def test_losses_that_are_not_finite_are_skipped_counted_and_in_the_end_fatal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = _loop(tmp_path, networks=2, steps=100, save_every=5)

    def algorithm(number: int, x: Tensor, _: Tensor) -> Iterator[Loss]:
        G, D = (network.parameters["weight"] for network in loop.networks)
        bad = float("inf") if 2 <= number < 2 + BAD_STEPS - 1 or number > 30 else 1.0
        yield Loss("generator", (G * x * bad).sum(), {})
        yield Loss("discriminator", D.sum(), {})

    with pytest.raises(TrainingError, match=rf"{BAD_STEPS} steps in a row .* stopped at step 51"):
        loop.run(PAIRS, algorithm)
    assert BAD_STEPS == 20
    assert all(map(torch.isfinite, map(torch.tensor, _weights(loop))))
    # nineteen in a row were survived before
    assert loop.skipped == 19 + 20
    assert capsys.readouterr().err.count("left out") == 39
    assert (tmp_path / "latest").read_text() == "step-000050\n"


def test_a_poisoned_checkpoint_is_never_written(tmp_path: Path) -> None:
    loop = _loop(tmp_path, steps=2, save_every=1)
    loop.step = 1
    loop.save()
    with torch.no_grad():
        loop.networks[0].parameters["weight"].fill_(float("nan"))
    loop.step = 2
    with pytest.raises(TrainingError, match=r"step 2: generator.weight has values that are not finite"):
        loop.save()
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-000001"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_picture_with_a_checkpoint(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = _loop(tmp_path, steps=10, accumulation=2)

    def algorithm(batch: int, x: Tensor, y: Tensor) -> Iterator[Loss]:
        if batch == 4:  # the first of the third step
            os.kill(os.getpid(), number)
        yield from _each(loop)(batch, x, y)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        loop.run(PAIRS, algorithm)
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before
    assert "stopped at step 3" in capsys.readouterr().err

    again = _loop(tmp_path, steps=10, accumulation=2)
    again.resume("auto")
    assert (again.step, again.next_batch) == (3, 6)
    again.run(PAIRS, _each(again))
    whole = _loop(tmp_path / "whole", steps=10, accumulation=2)
    whole.run(PAIRS, _each(whole))
    assert _weights(again) == _weights(whole)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        *range(1, 11)
    ]


def test_starting_anew_loses_nothing_of_the_earlier_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for _ in range(2):
        loop = _loop(run, steps=1)
        loop.resume("never")
        loop.run(PAIRS, _each(loop))
    assert (run / "step-000001" / "COMMIT").is_file()
    assert (tmp_path / "run.1" / "step-000001" / "COMMIT").is_file()
    assert "the earlier run is now in" in capsys.readouterr().err


def test_a_resume_shows_changed_settings_and_refuses_other_parents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = _loop(tmp_path, steps=1)
    loop.settings, loop.parents = {"optimization": {"lr": 1, "steps": 1}}, {"base": "a" * 64}
    loop.run(PAIRS, _each(loop))

    other = _loop(tmp_path, steps=2)
    other.settings, other.parents = {"optimization": {"lr": 2, "steps": 1}}, {"base": "a" * 64}
    other.resume("auto")
    assert "changed since: optimization.lr: 1 -> 2" in capsys.readouterr().err
    other.parents = {"base": "b" * 64}
    with pytest.raises(TrainingError, match="trained on base aaaaaaaaaaaa, not on bbbbbbbbbbbb"):
        other.resume(str(tmp_path / "step-000001"))
    with pytest.raises(TrainingError, match="trains generator, the configuration generator and d"):
        _loop(tmp_path, networks=2).resume("auto")


def test_the_schedules_warm_up_and_fall_to_one_per_cent() -> None:
    for name in SCHEDULES:
        o = optimization(schedule=name, steps=110, warmup=10)
        shares = [lr_factor(step, o) for step in range(111)]
        assert shares[:3] == pytest.approx([0.1, 0.2, 0.3])
        assert shares[10] == 1
        assert shares[110] == pytest.approx(1 if name == "constant" else LOWEST)
        assert shares[10:] == sorted(shares[10:], reverse=True)
    assert lr_factor(60, optimization(schedule="cosine", steps=110, warmup=10)) == pytest.approx(0.505)
    assert lr_factor(60, optimization(schedule="linear", steps=110, warmup=10)) == pytest.approx(0.505)
    with pytest.raises(TrainingError, match="constant, linear, cosine, polynomial"):
        optimization(schedule="sawtooth")


def test_what_is_not_there_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="optimizer 'sgd' is not known"):
        _loop(tmp_path, optimizer="sgd")
    with pytest.raises(TrainingError, match="tracker 'tensorbord' is not known"):
        usable_trackers(["tensorbord"])
    with pytest.raises(TrainingError, match="device 'gpu' is not known"):
        join("gpu", tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="device cuda was asked for"):
            join("cuda", tmp_path)
    with pytest.raises(TrainingError, match="steps must be at least 1"):
        optimization(steps=0)


def test_8_bit_adam_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(TrainingError, match="needs the package bitsandbytes"):
            _loop(tmp_path, optimizer="adamw8bit")
    else:
        pytest.skip("bitsandbytes is installed")


def test_tensorboard_gets_every_figure_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop = _loop(tmp_path, steps=3)
    loop.accelerator = join("cpu", tmp_path, ["tensorboard"])
    loop.run(PAIRS, _each(loop))
    events = EventAccumulator(str(tmp_path / "tudsr"))
    events.Reload()
    assert {"L_generator", "lr/generator", "gradient_norm/generator"} <= {*events.Tags()["scalars"]}
    assert [event.step for event in events.Scalars("L_generator")] == [1, 2, 3]
