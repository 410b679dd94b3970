"""Weights of a large model as OpenVINO's CPU plugin wants them, in a file that is mapped instead of memory.

The plugin packs each weight for its kernels, in the precision that it computes in, and keeps what it packed
from: of half weights a float32 copy that it made itself, of matrices a transposed one, together several
gigabytes at full size that nothing reads again. From float32 weights of the right layout in a mapped file it
makes no copy but the packed one, and the pages of a file that nobody reads cost no memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tudsr_runtime.atomic import atomic_write, sweep
from tudsr_runtime.files import make_folder

LARGE = 100_000_000
"""Bytes of float32 weights from which a model is worth a file of its own."""
WORTH_MAPPING = 100_000
"""Values from which a constant is mapped; of the smaller ones some are folded into their neighbours."""
ALIGNMENT = 4096
EVICT_EVERY = 0.02
"""Seconds; at some GB/s of packing, some tens of MB are resident in between."""


@dataclass(frozen=True)
class Weight:
    """A constant of a model, the place where it is used, and where its float32 values begin in the file."""

    constant: Any
    output: Any
    transposed: bool
    offset: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        shape = tuple(self.constant.shape)
        return shape[::-1] if self.transposed else shape

    @property
    def bytes(self) -> int:
        """Size in the file, bytes."""
        return 4 * math.prod(self.shape)

    def values(self) -> NDArray[np.float32]:
        """Values as they are in the file, in C order."""
        data = self.constant.data
        return np.ascontiguousarray(data.T if self.transposed else data, dtype=np.float32)


class MappedWeights:
    """The float32 weights of one model in a file."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            # OpenVINO takes only what it could write to; it never does, and the file would not change.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def array(self, weight: Weight) -> NDArray[np.float32]:
        """A view of the file."""
        count = math.prod(weight.shape)
        return np.frombuffer(self._map, np.float32, count, weight.offset).reshape(weight.shape)

    def evict(self) -> None:
        """Give back the pages that were read; whoever reads them again gets them from the file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    @contextmanager
    def evicted(self) -> Iterator[None]:
        """Give back, again and again while the block runs, what it reads."""
        done = threading.Event()

        def evict() -> None:
            while not done.wait(EVICT_EVERY):
                self.evict()

        thread = threading.Thread(target=evict, name="evict weights", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.evict()


def map_weights(
    read: Callable[[], Any], folder: Path, name: str, notify: Callable[[str], None] = lambda _: None
) -> tuple[Any, MappedWeights | None]:
    """A float32 model whose large weights are constants in a file, which is written if it is not there.

    Args:
        read: gives the model as it is in the bundle, an `openvino.Model`.
        folder: where the file is kept.
        name: what tells these weights from others, such as the hash of their file in the bundle.
        notify: is told when the file is written.

    Returns:
        The model, equal in what it computes, and the mapping; None if it has too few float32 weights to be
        worth it, and is as `read` gave it.

    Raises:
        OutputError, OSError: the file cannot be written or mapped.
    """
    model = read()
    weights = _weights(model)
    if sum(weight.bytes for weight in weights) < LARGE:
        return model, None
    path, size = folder / f"{_identity(name, weights)}.f32", weights[-1].offset + weights[-1].bytes
    if not path.is_file() or path.stat().st_size != size:
        notify(f"keeping {size / 1e9:.1f} GB of weights for OpenVINO, for this time and the next, in {path}")
        make_folder(folder)
        sweep(folder)
        with atomic_write(path) as file:
            for weight in weights:
                file.seek(weight.offset)
                file.write(weight.values().data)
        # What was read of the bundle is given back with the model that it was read through.
        del model, weights, weight
        model = read()
        weights = _weights(model)
    mapped = MappedWeights(path)
    for weight in weights:
        _replace(weight, mapped.array(weight))
    return model, mapped


def _weights(model: Any) -> list[Weight]:
    found, offset = [], 0
    for constant in model.get_ordered_ops():
        if constant.get_type_name() != "Constant" or math.prod(constant.shape) < WORTH_MAPPING:
            continue
        output = _as_float32(constant)
        if output is not None:
            found.append(Weight(constant, output, _is_matrix(output), offset))
            offset += -(-found[-1].bytes // ALIGNMENT) * ALIGNMENT
    return found


def _as_float32(constant: Any) -> Any | None:
    """The output that gives the float32 values: the constant's own, or that of its one conversion."""
    kind = constant.get_element_type().to_string()
    if kind == "f32":
        return constant.output(0)
    readers = [reader.get_node() for reader in constant.output(0).get_target_inputs()]
    if kind != "f16" or len(readers) != 1 or readers[0].get_type_name() != "Convert":
        return None
    return readers[0].output(0) if readers[0].get_element_type().to_string() == "f32" else None


def _is_matrix(output: Any) -> bool:
    """Whether it is the right factor of one product, of shape (in, out), which the plugin would transpose."""
    readers = list(output.get_target_inputs())
    if len(readers) != 1 or len(output.get_shape()) != 2 or readers[0].get_index() != 1:
        return False
    product = readers[0].get_node()
    return product.get_type_name() == "MatMul" and not product.get_attributes()["transpose_b"]


def _replace(weight: Weight, values: NDArray[np.float32]) -> None:
    from openvino import opset13

    constant = opset13.constant(values, shared_memory=True)
    constant.set_friendly_name(weight.constant.get_friendly_name())
    for reader in weight.output.get_target_inputs():
        reader.replace_source_output(constant.output(0))
        if weight.transposed:
            reader.get_node().set_attribute("transpose_b", True)


def _identity(name: str, weights: list[Weight]) -> str:
    layout = [(weight.constant.get_friendly_name(), weight.shape, weight.offset) for weight in weights]
    return hashlib.sha256(json.dumps([name, layout]).encode()).hexdigest()[:32]
