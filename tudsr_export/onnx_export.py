"""A module as an ONNX file: opset 22, static shapes, nothing in it but the graph and its weights."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir
import torch
from onnxscript import optimizer
from torch import nn

OPSET = 22
"""The last one in which attention is written out as MatMul, Softmax, MatMul, which TensorRT fuses; from 21 on
GroupNormalization is one operator with float32 statistics."""
MODEL_NAME = "model.onnx"
EXTERNAL_FROM = {"fp32": 256 * 2**20, "fp16": 2**16}
"""Bytes of weights from which they lie in a file of their own: protobuf ends at 2 GiB, and the weights of a
half graph are shared with a second one (`tudsr_export.float32_graph`)."""
FOLD_UP_TO = 2**20
"""Elements of a tensor up to which what can be computed from constants is computed."""
TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


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
    name: str = MODEL_NAME,
) -> Path:
    """Write `folder`/model.onnx (and model.onnx.data from `external_from` bytes of weights on, by default
    `EXTERNAL_FROM`) and return it. `folder` is made. A graph of another `name` reads the weights that it has
    in common with model.onnx from there; the others lie inside of it.

    `module` must already have the precision, "fp32" or "fp16". The bytes depend on nothing but the module and
    the versions of torch, onnxscript and onnx.
    """
    folder.mkdir(exist_ok=True)
    example = torch.zeros(source.shape, dtype=TORCH_DTYPES[precision])
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
        assert program is not None  # as it is of the exporter before dynamo
        # The exporter itself folds small constants only, not a prompt's keys and values.
        optimizer.optimize(program.model, input_size_limit=FOLD_UP_TO, output_size_limit=FOLD_UP_TO)
    transpose_by_name(program.model)
    strip_metadata(program.model)
    if name == MODEL_NAME:
        weights = sum(_stored(value).nbytes for value in program.model.graph.initializers.values())
        threshold = EXTERNAL_FROM[precision] if external_from is None else external_from
        program.save(folder / name, external_data=weights >= threshold)
    else:
        _share_weights(program.model, folder / MODEL_NAME)
        onnx_ir.save(program.model, folder / name)
    onnx.checker.check_model(folder / name, full_check=True)
    return folder / name


def transpose_by_name(model: onnx_ir.Model) -> None:
    """Write what an Einsum of one tensor only reorders as a Transpose: ONNX has no Einsum of bfloat16, and an
    engine need not think about it. SD 3 puts its patches together so."""
    for graph in model.graphs():
        for node in tuple(graph):
            order = _order(node)
            if order is None:
                continue
            (given,), (made,) = node.inputs, node.outputs
            transpose = onnx_ir.node("Transpose", [given], attributes={"perm": order}, name=node.name)
            (out,) = transpose.outputs
            out.name, out.shape, out.type = f"{made.name}_reordered", made.shape, made.type
            made.replace_all_uses_with(out)
            graph.insert_after(node, transpose)
            graph.remove(node, safe=True)


def _order(node: onnx_ir.Node) -> list[int] | None:
    """The axes, in their new order, of an Einsum that only reorders them."""
    if node.op_type != "Einsum" or len(node.inputs) != 1:
        return None
    before, _, after = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    plain = before.isalpha() and len({*before}) == len(before) and sorted(before) == sorted(after)
    return [before.index(axis) for axis in after] if plain else None


def _share_weights(model: onnx_ir.Model, first: Path) -> None:
    """Let `model` read from the external file of `first` whatever weights are the same there."""
    known = {
        _content(value): value.const_value
        for value in onnx_ir.load(first).graph.initializers.values()
        if isinstance(value.const_value, onnx_ir.ExternalTensor)
    }
    for value in model.graph.initializers.values():
        same = known.get(_content(value))
        if same is not None:
            value.const_value = onnx_ir.ExternalTensor(
                same.location,
                same.offset,
                same.length,
                same.dtype,
                shape=same.shape,
                name=str(value.name),
                base_dir=same.base_dir,
            )


def _stored(value: onnx_ir.Value) -> onnx_ir.TensorProtocol:
    assert value.const_value is not None, f"{value.name} is no initializer"
    return value.const_value


def _content(value: onnx_ir.Value) -> tuple[object, ...]:
    tensor = _stored(value)
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest()


def external_files(model: Path) -> tuple[str, ...]:
    """Names of the files beside `model` that it reads weights from."""
    graph = onnx.load(model, load_external_data=False).graph
    locations = (
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    )
    return tuple(sorted(set(locations)))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about itself: its own future, packages that it could use too."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx._internal.exporter", "onnxscript.optimizer")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch.export calls what torch itself is about to remove.
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
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
