"""A second graph over the same half weights that computes in float32, for processors without half arithmetic.

On a CPU, ONNX Runtime computes half graphs in float32 anyway and casts around every operator; here the casts
stand at the weights, where they are folded once, at loading.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


def write_float32_graph(narrow: Path) -> Path:
    """Write a graph beside a half graph, over its weights, with `_fp32` behind its name; returns the file.

    Every half value becomes float32, inputs and outputs too. Weights in the graph's external file are
    read from there, as half, and cast; those inside the graph are stored as float32.
    """
    model = ir.load(narrow)
    for graph in model.graphs():
        for value in tuple(graph.initializers.values()):
            _widen_initializer(graph, value)
        for value in graph.inputs:
            _widen_type(value)
        for node in graph:
            _widen_node(node)
    wide = narrow.with_name(f"{narrow.stem}_fp32.onnx")
    ir.save(model, wide)
    onnx.checker.check_model(wide, full_check=True)
    return wide


def _widen_initializer(graph: ir.Graph, value: ir.Value) -> None:
    stored = value.const_value
    if stored is None or stored.dtype != HALF:
        return
    if not isinstance(stored, ir.ExternalTensor):
        value.const_value = _single(stored)
        _widen_type(value)
        return
    cast = ir.node("Cast", [value], attributes={"to": SINGLE}, name=f"{value.name}_cast")
    (out,) = cast.outputs
    out.name, out.shape, out.type = f"{value.name}_fp32", value.shape, ir.TensorType(SINGLE)
    value.replace_all_uses_with(out)
    cast.replace_input_with(0, value)
    graph.insert_before(graph[0], cast)


def _widen_node(node: ir.Node) -> None:
    for value in node.outputs:
        _widen_type(value)
    for name, attribute in tuple(node.attributes.items()):
        if node.op_type == "Cast" and name == "to" and attribute.as_int() == HALF:
            node.attributes[name] = ir.AttrInt64(name, int(SINGLE))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == HALF:
            node.attributes[name] = ir.AttrTensor(name, _single(attribute.as_tensor()))


def _widen_type(value: ir.Value) -> None:
    if value.dtype == HALF:
        value.type = ir.TensorType(SINGLE)


def _single(tensor: ir.TensorProtocol) -> ir.Tensor[Any]:
    return ir.Tensor(tensor.numpy().astype("float32"), name=tensor.name)
