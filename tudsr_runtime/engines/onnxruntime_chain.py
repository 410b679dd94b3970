"""Tiles through ONNX Runtime's sessions without a stop on the host, through IO binding.

The shapes never change, so that every tensor is allocated and bound once, and used again for each tile. What
travels lies in memory of the host that the GPU copies from by itself, where this ONNX Runtime has any.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tudsr_runtime.calls import under_way
from tudsr_runtime.engines.backend import as_engine_error, split_device
from tudsr_runtime.manifest import TensorSpec
from tudsr_runtime.planes import FloatArray


@dataclass
class Session:
    """A session (None: closed), the component that it runs, and its one input and output."""

    session: Any
    component: str
    source: TensorSpec
    target: TensorSpec


@dataclass
class _Slot:
    """The tensors of one tile under way, each bound to the sessions that write and read it."""

    sent: np.ndarray[Any, Any]
    first: Any
    bindings: list[Any]
    received: np.ndarray[Any, Any]
    kept: tuple[Any, ...]


class BoundChain:
    """Sessions in a row on one device; may be run from several threads, each with tensors of its own."""

    def __init__(self, sessions: Sequence[Session], device: str) -> None:
        self._sessions, self._device = tuple(sessions), device
        self._idle: list[_Slot] = []

    def run(self, x: FloatArray) -> FloatArray:
        """The output of the last session for the input of the first, an array on the host.

        Raises:
            MemoryExhausted, DeviceError: ONNX Runtime failed.
        """
        try:
            slot = self._idle.pop()
        except IndexError:
            slot = self._slot()
        with named(f"copying a tile to {self._device}"):
            np.copyto(slot.sent, x, casting="same_kind")
            slot.first.update_inplace(slot.sent)
        for one, binding in zip(self._sessions, slot.bindings, strict=True):
            options = run_options()
            with named(f"running {one.component}"), ended_by(options):
                one.session.run_with_iobinding(binding, options)
        y: FloatArray = slot.received.astype(np.float32)
        self._idle.append(slot)
        return y

    def _slot(self) -> _Slot:
        first, last = self._sessions[0], self._sessions[-1]
        with named(f"allocating a tile on {self._device}"):
            sent, received = (_on_host(spec, self._device) for spec in (first.source, last.target))
            inside = [_on_device(one.target, self._device) for one in self._sessions[:-1]]
            values = [_on_device(first.source, self._device), *inside, received]
            bindings = [
                _bound(one, *ends) for one, ends in zip(self._sessions, pairwise(values), strict=True)
            ]
        return _Slot(_view(sent), values[0], bindings, _view(received), (sent, *values))


def run_options() -> Any:
    """Options of one run, by which it can be ended."""
    import onnxruntime

    return onnxruntime.RunOptions()


def ended_by(options: Any) -> contextlib.AbstractContextManager[None]:
    """The block is the run of these options; another thread may end it between two operators."""
    return under_way(lambda: setattr(options, "terminate", True))


@contextlib.contextmanager
def named(doing: str, by_graph: bool = False) -> Iterator[None]:
    """Raise what ONNX Runtime raises as an error of ours; `by_graph`: the graph is to blame for it."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's exceptions share no narrower base.
        raise as_engine_error(error, f"{doing} with ONNX Runtime", by_graph) from error


def _bound(one: Session, source: Any, target: Any) -> Any:
    binding = one.session.io_binding()
    binding.bind_ortvalue_input(one.source.name, source)
    binding.bind_ortvalue_output(one.target.name, target)
    return binding


def _on_device(spec: TensorSpec, device: str) -> Any:
    import onnxruntime

    kind, number = split_device(device)
    dtype = np.dtype(spec.dtype).type
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(spec.shape, dtype, kind, number)


def _on_host(spec: TensorSpec, device: str) -> Any:
    import onnxruntime

    dtype, pinned = np.dtype(spec.dtype).type, pinned_memory(device)
    make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
    return make(spec.shape, dtype, memory_info=pinned) if pinned is not None else make(spec.shape, dtype)


def pinned_memory(device: str) -> Any:
    """ONNX Runtime's name of the host memory that a CUDA GPU copies from by itself.

    None elsewhere, and where an older ONNX Runtime lends none to Python: copies then take longer.
    """
    import onnxruntime

    kind, number = split_device(device)
    make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
    if kind != "cuda" or "memory_info" not in inspect.signature(make).parameters:
        return None
    places = [one for one in onnxruntime.get_ep_devices() if one.ep_name == "CUDAExecutionProvider"]
    if number >= len(places):
        return None
    return places[number].memory_info(onnxruntime.OrtDeviceMemoryType.HOST_ACCESSIBLE)


def _view(value: Any) -> np.ndarray[Any, Any]:
    """The memory of a tensor on the host as an array, which must not outlive it."""
    size = value.tensor_size_in_bytes()
    raw = (ctypes.c_byte * size).from_address(value.data_ptr())
    dtype = np.float16 if value.data_type() == "tensor(float16)" else np.float32
    return np.ctypeslib.as_array(raw).view(dtype).reshape(value.shape())
