"""Bases and adapters are strangers' files: how much they may ask for, and one kind of error for misreading.

Libraries build what a config says before they look at its weights, and raise whatever comes to them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tudsr_runtime.errors import BundleError, TudsrError
from tudsr_runtime.typed import parse_json

MOST = 2**20
"""Greatest whole number in a base's config; a vocabulary is the largest that means something."""
MOST_LAYERS = 100
"""Greatest number of layers of a part, and of parts in a row."""
ONE_A_TIMESTEP = ("trained_betas", "timesteps")
"""Lists of a scheduler that are long."""
MOST_BYTES = 2**24
"""Greatest size of a config."""
MOST_SAID = 240
"""Characters of a library's message that are passed on."""
REPEATS = re.compile(r"[*+?{]")
"""What makes a regular expression take for ever."""


@contextmanager
def misread(what: str, kind: type[TudsrError] = BundleError, *, hint: str | None = None) -> Iterator[None]:
    """What a library raises inside becomes an error of ours that begins with `what` and ends with its line.

    Our own errors, and a machine's memory that does not suffice, pass.
    """
    import torch

    try:
        yield
    except (TudsrError, MemoryError, torch.OutOfMemoryError):
        raise
    except RecursionError as error:
        raise kind(f"{what}: it is nested too deeply", hint=hint) from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        named = f"{type(error).__name__}: " if isinstance(error, (LookupError, ArithmeticError)) else ""
        raise kind(f"{what}: {named}{lines[0][:MOST_SAID]}", hint=hint) from error


@contextmanager
def without_bars() -> Iterator[None]:
    """Within, transformers and diffusers draw no bars of what they load, and say nothing of parts of theirs
    that are not installed; the hub's bars of downloads stay."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    wanted = [one for one in (transformers_logging, diffusers_logging) if one.is_progress_bar_enabled()]
    downloads = not are_progress_bars_disabled()
    spoken = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    for one in wanted:
        one.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(spoken)
        for one in wanted:
            one.enable_progress_bar()


def read_config(path: Path, infinite: bool = False) -> dict[str, Any]:
    """A JSON object. Raises OSError, and ValueError where it is something else, nested too deeply or huge.

    Args:
        infinite: whether -Infinity may stand in it, as in what diffusers writes of some schedulers.
    """
    with open(path, "rb") as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"{path.name} is larger than {MOST_BYTES // 2**20} MiB")
    tree = json.loads(text) if infinite else parse_json(text)
    if not isinstance(tree, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return tree


def require_modest(tree: Any, where: str) -> None:
    """ValueError where a model's config holds a number or a list that no model has, or layers without end."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key not in ONE_A_TIMESTEP:
                require_modest(value, f"{where}: {key}")
    elif isinstance(tree, list):
        _require_at_most(len(tree), MOST_LAYERS, where, " entries")
        for value in tree:
            require_modest(value, where)
    elif isinstance(tree, int):
        _require_at_most(tree, MOST_LAYERS if "layers" in where.rpartition(": ")[2] else MOST, where, "")


def _require_at_most(value: int, most: int, where: str, unit: str) -> None:
    if abs(value) > most:
        raise ValueError(f"{where} is {value}{unit}, more than {most}")


def require_no_repetition(expressions: Any, where: str) -> None:
    """ValueError where a name that PEFT takes for a regular expression could take for ever to be matched."""
    for text in [expressions] if isinstance(expressions, str) else expressions or ():
        if not isinstance(text, str) or len(text) > 1000 or REPEATS.search(text):
            raise ValueError(
                f"{where} must name modules; {str(text)[:60]!r} is an expression with repetition"
            )
