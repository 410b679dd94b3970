"""Upscale pictures with a tudsr bundle; needs numpy, Pillow and one engine library.

    from tudsr_runtime import Upscaler

    with Upscaler("nano") as upscaler:
        large = upscaler.upscale(image, scale=8)    # an array or a Pillow image, in and out

Names are imported when first used, so that importing the package costs next to nothing.

ONNX Runtime, from 1.29 on, reports to its makers which models are run, unless it is told otherwise before
it is imported: importing this package tells it (`ORT_DISABLE_TELEMETRY`, if it is not set already).
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from tudsr_runtime.bundle import Bundle, open_bundle
    from tudsr_runtime.engines.backend import Choice
    from tudsr_runtime.errors import (
        BatchError,
        BundleError,
        DeviceError,
        InputError,
        MemoryExhausted,
        NotFiniteError,
        OutputError,
        TrainingError,
        TudsrError,
        UsageError,
    )
    from tudsr_runtime.tiling.plan import Plan, plan_upscale
    from tudsr_runtime.upscaler import Upscaler
    from tudsr_runtime.version import __version__

__all__ = [
    "BatchError",
    "Bundle",
    "BundleError",
    "Choice",
    "DeviceError",
    "InputError",
    "MemoryExhausted",
    "NotFiniteError",
    "OutputError",
    "Plan",
    "TrainingError",
    "TudsrError",
    "Upscaler",
    "UsageError",
    "__version__",
    "open_bundle",
    "plan_upscale",
]

_HOMES = {
    "Bundle": "bundle",
    "Choice": "engines.backend",
    "Plan": "tiling.plan",
    "Upscaler": "upscaler",
    "__version__": "version",
    "open_bundle": "bundle",
    "plan_upscale": "tiling.plan",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
