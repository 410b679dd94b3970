"""`tudsr eval ablation`: a bundle by one stage alone and by both, as in the paper's Tables 4 and 5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tudsr_eval.matching import pictures_at
from tudsr_eval.page import as_image
from tudsr_eval.scores import load
from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.errors import UsageError
from tudsr_runtime.upscaler import Upscaler

PLANS = {4: {"M4": "4x-", "N4": "-x4", "M2N2": "2x2"}, 8: {"M8": "8x-", "N8": "-x8", "M4N2": "4x2"}}
"""Of Table 4 and Table 5: the paper's names, and --factors."""


@dataclass(frozen=True)
class AblationOptions:
    """The options of `tudsr eval ablation`, as its help describes them."""

    scale: int = 4
    backend: str = "auto"
    device: str = "auto"
    threads: int | None = None


def enlarge_by_plans(
    bundle: str, folder: Path, output: Path, options: AblationOptions, note: Callable[[str], object]
) -> list[Path]:
    """Enlarge the pictures of `folder` by every plan into `output`, one folder a plan; the folders.

    What a plan has already written there is not made again.

    Raises:
        UsageError: another scale than 4 or 8.
        TudsrError: as `Upscaler`, of the first picture that fails.
    """
    if options.scale not in PLANS:
        raise UsageError(f"--scale {options.scale}: the paper's tables are of x4 and x8")
    pictures = pictures_at(folder)
    plans = PLANS[options.scale]
    with Upscaler(bundle, options.backend, options.device, threads=options.threads) as upscaler:
        for name, factors in plans.items():
            made = _enlarge(upscaler, pictures, output / name, options.scale, factors)
            note(f"{name} (--factors {factors}): {made} pictures made, {len(pictures) - made} there")
    return [output / name for name in plans]


def _enlarge(upscaler: Upscaler, pictures: Sequence[Path], into: Path, scale: int, factors: str) -> int:
    """How many were made."""
    missing = [(p, into / f"{p.stem}_x{scale}.png") for p in pictures]
    missing = [(source, target) for source, target in missing if not target.exists()]
    into.mkdir(parents=True, exist_ok=True)
    for source, target in missing:
        large = as_image(upscaler.upscale(load(source), scale, factors))
        with atomic_write(target) as file:
            large.save(file, "PNG")
    return len(missing)
