"""A module as an ONNX file: opset 22, static shapes, nothing in it but the graph and its weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch
from onnxscript import optimizer
from torch import nn

if TYPE_CHECKING:
    import onnx_ir

OPSET = 22
"""The last one in which attention is written out as MatMul, Softmax, MatMul, which TensorRT fuses; from 21 on
GroupNormalization is one operator with float32 statistics."""
MODEL_NAME = "model.onnx"
EXTERNAL_FROM = {"fp32": 256 * 2**20, "fp16": 2**16}
"""Bytes of weights from which they lie in a file of their own: protobuf ends at 2 GiB, and the weights of a
half graph are shared with a second one (`tudsr_export.widen`)."""
FOLD_UP_TO = 2**20
"""Elements of a tensor up to which what can be computed from constants is computed."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class Port:
    """Name and fixed shape of a graph's input or output."""

    name: str
    shape: tuple[int, ...]


def export_onnx(
    module: nn.Module,
    folder: Path,
    source: Port,
    target: Port,
    precision: str,
    external_from: int | None = None,
) -> None:
    """Write `folder`/model.onnx (and model.onnx.data from `external_from` bytes of weights on, by default
    `EXTERNAL_FROM`). `folder` is made.

    `module` must already have the precision, "fp32" or "fp16". The bytes depend on nothing but the module and
    the versions of torch, onnxscript and onnx.
    """
    folder.mkdir()
    example = torch.zeros(source.shape, dtype=DTYPES[precision])
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[source.name],
            output_names=[target.name],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    # The exporter itself folds small constants only, not a prompt's keys and values.
    optimizer.optimize(program.model, input_size_limit=FOLD_UP_TO, output_size_limit=FOLD_UP_TO)
    strip_metadata(program.model)
    weights = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    threshold = EXTERNAL_FROM[precision] if external_from is None else external_from
    program.save(folder / MODEL_NAME, external_data=weights >= threshold)
    onnx.checker.check_model(folder / MODEL_NAME, full_check=True)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about itself: its own future, packages that it could use too."""
    logger = logging.getLogger("torch.onnx._internal.exporter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch.export calls what torch itself is about to remove.
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def strip_metadata(model: onnx_ir.Model) -> None:
    """Remove what the exporter notes about where it ran: stack traces, source paths, tensor provenance."""
    model.metadata_props.clear()
    model.doc_string = None
    for graph in model.graphs():
        graph.metadata_props.clear()
        graph.doc_string = None
        for value in (*graph.inputs, *graph.initializers.values()):
            _strip_value(value)
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                _strip_value(value)


def _strip_value(value: onnx_ir.Value) -> None:
    value.metadata_props.clear()
    value.doc_string = None
