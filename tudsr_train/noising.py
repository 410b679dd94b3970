"""How a base was noised while it was trained: which timesteps there are, and how much noise each means.

    VariancePreserving    z_t = sqrt(A_t) z + sqrt(1 - A_t) eps    A_t = alphas_cumprod[t], t = 0 ... T - 1
    Flow                  z_t = (1 - sigma) z + sigma eps          sigma = t / T, t = 1 ... T

The generator takes the level of noise at its fixed t from here; noise itself is only ever added for the
diffusion discriminator. T is 1000 everywhere.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tudsr_train.step import FLOW_PREDICTION


class Noising(nn.Module):
    """The levels of noise of a base, by timestep; `first` is the first timestep that means anything."""

    first: int
    levels: Tensor
    """(T,) or (T + 1,), indexed by the timestep."""

    def __init__(self, levels: Tensor) -> None:
        super().__init__()
        self.register_buffer("levels", levels, persistent=False)

    @property
    def last(self) -> int:
        """The last timestep, where next to nothing is left of the picture."""
        return len(self.levels) - 1

    def draw(self, count: int, rng: torch.Generator | None, device: torch.device) -> Tensor:
        """Timesteps, (count,), each as likely as the others."""
        return torch.randint(self.first, len(self.levels), (count,), generator=rng, device=device)

    def told(self, t: Tensor, unit: float) -> Tensor:
        """What a backbone is told of timesteps t (B,), where it counts from 0 to `unit`."""
        raise NotImplementedError

    def add(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t: latents (B, C, h, w) with noise of their timesteps t (B,)."""
        raise NotImplementedError


class VariancePreserving(Noising):
    """Of Stable Diffusion 1.5, 2.1, XL and Turbo, and of nano."""

    first = 0

    def told(self, t: Tensor, unit: float) -> Tensor:  # noqa: ARG002 - these backbones count steps
        return t

    def add(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        alpha = self.levels[t].to(z.dtype).view(-1, 1, 1, 1)
        return alpha.sqrt() * z + (1 - alpha).sqrt() * eps


class Flow(Noising):
    """Of flow matching: Stable Diffusion 3 and 3.5, Sana, FLUX."""

    first = 1

    def __init__(self, steps: int = 1000) -> None:
        super().__init__(torch.arange(steps + 1) / steps)

    def told(self, t: Tensor, unit: float) -> Tensor:
        return t.to(self.levels.dtype) * unit / self.last

    def add(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        sigma = self.levels[t].to(z.dtype).view(-1, 1, 1, 1)
        return (1 - sigma) * z + sigma * eps


def noising_of(folder: Path) -> tuple[Noising, str]:
    """The noising that the scheduler in a folder describes, and what the base predicts."""
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    config = DDPMScheduler.load_config(folder)
    flow = str(config.get("_class_name", "")).startswith("FlowMatch") or config.get("use_flow_sigmas")
    if flow or config.get("prediction_type") == FLOW_PREDICTION:
        found = FlowMatchEulerDiscreteScheduler.from_pretrained(folder)
        return Flow(found.config.num_train_timesteps), FLOW_PREDICTION
    scheduler = DDPMScheduler.from_pretrained(folder)
    return VariancePreserving(scheduler.alphas_cumprod), scheduler.config.prediction_type
