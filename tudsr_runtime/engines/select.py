"""The back ends that there are, and which of them runs where: adding one is a line in `BACKENDS` and one of
the three lists below it (CONTRIBUTING.md). An engine library is imported only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from tudsr_runtime.engines.backend import AUTO, Backend, Choice, Unavailable, split_device
from tudsr_runtime.errors import DeviceError, UsageError, quoted
from tudsr_runtime.manifest import PRECISIONS

Obstacle = Callable[[str, str], Unavailable | None]
"""Why a back end does not serve on a device for what is to be run; None if it may."""
BACKENDS = {
    "openvino": "tudsr_runtime.engines.openvino:BACKEND",
    "onnxruntime": "tudsr_runtime.engines.onnxruntime:BACKEND",
    "onnxruntime-rtx": "tudsr_runtime.engines.onnxruntime_rtx:BACKEND",
    "tensorrt": "tudsr_runtime.engines.tensorrt.backend:TENSORRT",
    "tensorrt-rtx": "tudsr_runtime.engines.tensorrt.backend:TENSORRT_RTX",
}
"""Name of each back end, and where it is: module:OBJECT."""
PREFERENCE = (
    ("onnxruntime-rtx", "cuda"),
    ("onnxruntime", "cuda"),
    ("openvino", "cpu"),
    ("onnxruntime", "cpu"),
)
"""What `auto` tries behind `BY_NAME`, the fastest first; on NVIDIA GPUs, what compiles the graph."""
ON_REQUEST = (
    ("openvino", "gpu"),
    ("openvino", "npu"),
    ("onnxruntime", "coreml"),
    ("onnxruntime", "directml"),
    ("onnxruntime", "migraphx"),
)
"""What runs only where its device is named: nobody has tested these yet (docs/devices.md)."""
BY_NAME = (("tensorrt-rtx", "cuda"), ("tensorrt", "cuda"))
"""What runs engines that are built first (docs/tensorrt.md): where its back end is named, and before all else
where engines of the bundle are there already. RTX's are first: they are the same wherever they were built."""
BUILT = frozenset(name for name, _ in BY_NAME)
"""The back ends that run engines, and read none of the bundle's graphs."""
UNTIMED = BUILT | {"onnxruntime-rtx"}
"""The back ends that nobody has timed yet: they are preferred, and not recommended."""
DEVICES = tuple(dict.fromkeys(device for _, device in (*PREFERENCE, *ON_REQUEST, *BY_NAME)))
"""The kinds of device that --device may name."""


def select(
    backend: str = AUTO,
    device: str = AUTO,
    precision: str = AUTO,
    offered: Sequence[str] = ("fp32",),
    obstacle: Obstacle | None = None,
) -> Choice:
    """Choose where to run. What is named is used or is an error; only `auto` looks further.

    Args:
        backend: "auto" or a name in `BACKENDS`.
        device: "auto" or a name in `DEVICES`, with the number of one of several behind it: "cuda:1".
        precision: "auto" or a name in `tudsr_runtime.manifest.PRECISIONS`.
        offered: the precisions of the bundle's graphs, the main one first.
        obstacle: asked of every back end that nobody named, before it is probed; None leaves out those that
            need engines.

    Raises:
        UsageError: no back end, device or precision of that name.
        DeviceError: what was asked for is not available here.
    """
    kind, _ = split_device(device)
    _check_name("backend", backend, tuple(BACKENDS))
    _check_name("device", kind, DEVICES)
    _check_name("precision", precision, PRECISIONS)
    refused: list[tuple[str, str, Unavailable]] = []
    for name, place in _candidates(backend, kind):
        place = place if device == AUTO else device
        unavailable = (obstacle or _without_engines)(name, place) if backend == AUTO else None
        unavailable = unavailable or open_backend(name).probe(place)
        if unavailable is None:
            arithmetic = open_backend(name).precision(place, precision, offered)
            faster = [one.hint for other, at, one in refused if at == place and other not in UNTIMED]
            return Choice(
                name, place, _reason(backend, device, refused), arithmetic, faster=next(iter(faster), None)
            )
        refused.append((name, place, unavailable))
    if not refused:
        raise DeviceError(f"back end {backend} does not run on {device}", hint=f"--device {AUTO}")
    *_, last = refused[-1]
    raise DeviceError(last.problem, hint=last.hint)


def open_backend(name: str) -> Backend:
    """The back end of that name, which must be one of `BACKENDS`; its engine library is not imported yet."""
    module, _, variable = BACKENDS[name].partition(":")
    backend: Backend = getattr(importlib.import_module(module), variable)
    return backend


def _candidates(backend: str, kind: str) -> list[tuple[str, str]]:
    """The pairs of back end and device that fit, the best first."""
    pairs = (*BY_NAME, *PREFERENCE, *(() if kind == AUTO else ON_REQUEST))
    return [(name, place) for name, place in pairs if backend in (AUTO, name) and kind in (AUTO, place)]


def _check_name(option: str, name: str, known: tuple[str, ...]) -> None:
    if name != AUTO and name not in known:
        raise UsageError(f"no {option} is called {quoted(name)}; there are {', '.join((AUTO, *known))}")


def _without_engines(name: str, device: str) -> Unavailable | None:
    del device
    return Unavailable(f"{name} needs engines", "tudsr build") if name in BUILT else None


def _reason(backend: str, device: str, refused: list[tuple[str, str, Unavailable]]) -> str:
    if refused:
        return "; ".join(unavailable.problem for *_, unavailable in refused)
    return "as asked" if AUTO not in (backend, device) else "the fastest available"
