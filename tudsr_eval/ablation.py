"""`tudsr eval ablation`: a bundle by one stage alone and by both, as in the paper's Tables 4 and 5."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tudsr_eval.matching import pictures_at
from tudsr_eval.options import AblationOptions
from tudsr_eval.page import as_image
from tudsr_eval.scores import load
from tudsr_runtime.atomic import atomic_write
from tudsr_runtime.errors import OutputError, UsageError
from tudsr_runtime.files import make_folder
from tudsr_runtime.upscaler import Upscaler

RECORD = "ablation.json"
TABLE_PLANS = {4: {"M4": "4x-", "N4": "-x4", "M2N2": "2x2"}, 8: {"M8": "8x-", "N8": "-x8", "M4N2": "4x2"}}
"""Plans of Tables 4 and 5, by the paper's names, as `--factors` writes them."""


def enlarge_by_plans(
    bundle: str, folder: Path, options: AblationOptions, note: Callable[[str], object]
) -> list[Path]:
    """Enlarge the pictures of `folder` by every plan, into a folder each below `options.output`; these.

    What a plan has already written there is not made again.

    Raises:
        UsageError: another scale than 4 or 8, or results of another bundle or of other pictures lie there.
        TudsrError: as `Upscaler`, of the first picture that fails.
    """
    if options.scale not in TABLE_PLANS:
        raise UsageError(f"--scale {options.scale}: the paper's tables are of x4 and x8")
    pictures = pictures_at(folder)
    plans = TABLE_PLANS[options.scale]
    with Upscaler(bundle, options.backend, options.device, threads=options.threads) as upscaler:
        _claim(options.output, {"bundle": upscaler.bundle.sha256, "scale": options.scale,
                                "pictures": str(folder.resolve())})  # fmt: skip
        for name, factors in plans.items():
            made = _enlarge(upscaler, pictures, options.output / name, options.scale, factors)
            note(f"{name} (--factors {factors}): {made} pictures made, {len(pictures) - made} there")
    return [options.output / name for name in plans]


def _claim(output: Path, record: dict[str, object]) -> None:
    """Write down what the results in `output` are of, or see that it is the same."""
    path = output / RECORD
    make_folder(output)
    try:
        there = json.loads(path.read_text("utf-8")) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot use the folder {output}: {error}") from error
    if there is not None and there != record:
        differ = ", ".join(key for key in record if there.get(key) != record[key])
        raise UsageError(f"{output} holds an ablation of another {differ}", hint="another -o")
    with atomic_write(path) as file:
        file.write(json.dumps(record, indent=1).encode())


def _enlarge(upscaler: Upscaler, pictures: Sequence[Path], into: Path, scale: int, factors: str) -> int:
    """Enlarge what is not in the folder `into` yet; the number of pictures that were made."""
    missing = [(p, into / f"{p.stem}_x{scale}.png") for p in pictures]
    missing = [(source, target) for source, target in missing if not target.exists()]
    make_folder(into)
    for source, target in missing:
        large = as_image(upscaler.upscale(load(source), scale, factors))
        with atomic_write(target) as file:
            large.save(file, "PNG")
    return len(missing)
