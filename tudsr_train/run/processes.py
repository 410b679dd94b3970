"""One process, several GPUs or several machines: what `accelerate launch` or torchrun has started.

Gradients are averaged once per optimizer step, by one all-reduce of all of them in a row, and not by the
hooks of DistributedDataParallel. An adversarial step runs D twice in one backward and once frozen, stage 2
runs G frozen before it trains it, and accumulation skips all but the last backward: each is a special case
for the hooks, and none is for a plain average.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration
from torch import Tensor, nn

from tudsr_runtime.errors import DeviceError, TrainingError, TudsrError

T = TypeVar("T")

PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU)


def join(device: str, folder: Path, trackers: Sequence[str] = ()) -> Accelerator:
    """Take this process's place among those of the run, and its device.

    Args:
        device: auto (CUDA, else what accelerate finds, else the CPU), cpu, cuda or mps.
        folder: where trackers that write files put them.
        trackers: names that `accelerate` knows, such as tensorboard or wandb.

    Raises:
        DeviceError: the device is not there. TrainingError: processes that share one model's weights
            (DeepSpeed, FSDP) rather than each holding all of them.
    """
    cpu = _means_the_cpu(device)
    accelerator = Accelerator(
        cpu=cpu,
        # Mixed precision is `run.precision`'s: what `accelerate config` says must not change a run.
        mixed_precision="no",
        log_with=list(trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
    )
    if accelerator.distributed_type not in PLAIN:
        raise TrainingError(
            f"started as {accelerator.distributed_type}; only plain data parallelism is supported",
            hint="the trained part is small: use `accelerate launch --multi_gpu`, or torchrun",
        )
    return accelerator


def _means_the_cpu(device: str) -> bool:
    # Without this, several processes on machines without a GPU would each train alone, unaware of the rest.
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU") == "true"
    if device not in there:
        raise TrainingError(f"device {device!r} is not known; auto, {', '.join(there)} are")
    if not there[device]:
        raise DeviceError(f"device {device} was asked for, but torch {torch.__version__} sees none")
    return device == "cpu"


def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes; one that is missing counts as zero."""
    if accelerator.num_processes == 1:
        return
    owners = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in owners])
    mean = accelerator.reduce(flat, reduction="mean")
    for p, gradient in zip(owners, mean.split([p.numel() for p in owners]), strict=True):
        p.grad = gradient.view_as(p).clone()


def same_everywhere(accelerator: Accelerator, tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process, so that all start from the same weights."""
    if accelerator.num_processes > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor.data, src=0)


def from_the_first(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """What `make` gives in the first process, in every process; what it raises there of ours is raised in
    every one. The others may be on machines where nothing could be made of it."""
    if accelerator.num_processes == 1:
        return make()
    made: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            made[0] = make()
        except TudsrError as error:
            made[1] = error
    torch.distributed.broadcast_object_list(made, src=0)
    if made[1] is not None:
        raise made[1]
    return cast(T, made[0])


def require_agreement(accelerator: Accelerator, facts: dict[str, Any]) -> None:
    """TrainingError, in every process, where one of them knows other facts than the first does."""
    if accelerator.num_processes == 1:
        return
    all_facts: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(all_facts, facts)
    first = all_facts[0]
    for rank, other in enumerate(all_facts):
        unlike = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if unlike:
            name = unlike[0]
            raise TrainingError(
                f"process {rank} has {name} {_short(other.get(name))}, process 0 {_short(first.get(name))}: "
                "they would not train one model",
                hint="the same configuration, base and adapters on every machine",
            )


def _short(value: Any) -> str:
    return str(value)[:12]


def mean_over_processes(accelerator: Accelerator, values: dict[str, float]) -> dict[str, float]:
    """Each value's mean; every process must give the same names in the same order."""
    if accelerator.num_processes == 1:
        return values
    stacked = torch.tensor(list(values.values()), dtype=torch.float32, device=accelerator.device)
    return dict(zip(values, accelerator.reduce(stacked, reduction="mean").tolist(), strict=True))


def largest_over_processes(accelerator: Accelerator, value: int) -> int:
    """The largest of the processes' values; how one process's Ctrl-C becomes everyone's."""
    if accelerator.num_processes == 1:
        return value
    return int(accelerator.gather(torch.tensor([value], device=accelerator.device)).max())
