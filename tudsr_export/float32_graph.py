"""A second graph over the same half weights that computes in float32, for processors without half arithmetic.

On a CPU, ONNX Runtime computes half graphs in float32 anyway and casts around every operator; here the casts
stand at the weights, where they are folded once, at loading. Of bfloat16 it has no kernels there at all; what
such a graph computes is found by a third one, which rounds what every operator gives, and which nobody keeps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

HALF, BFLOAT16, SINGLE = ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT
NARROW = (HALF, BFLOAT16)


def write_float32_graph(narrow: Path) -> Path:
    """Write a graph beside a half graph, over its weights, with `_fp32` behind its name; returns the file.

    Every half and bfloat16 value becomes float32, inputs and outputs too. Weights in the graph's external
    file are read from there, as they are, and cast; those inside the graph are stored as float32.
    """
    model = ir.load(narrow)
    for graph in model.graphs():
        for value in tuple(graph.initializers.values()):
            _widen_initializer(graph, value, NARROW)
        for value in graph.inputs:
            _widen_type(value, NARROW)
        for node in graph:
            _widen_node(node, NARROW)
    return _saved(model, narrow.with_name(f"{narrow.stem}_fp32.onnx"))


def holds_bfloat16(model: Path) -> bool:
    """Whether anything of a graph is bfloat16."""
    graphs = ir.load(model).graphs()
    return any(value.dtype == BFLOAT16 for graph in graphs for node in graph for value in node.outputs)


def write_rounded_graph(narrow: Path) -> Path:
    """Write a graph beside one that holds bfloat16, over its weights, with `_rounded` behind its name, and
    return the file: whatever is bfloat16 is computed in float32 and rounded to bfloat16, as a GPU does it.
    """
    model = ir.load(narrow)
    for graph in model.graphs():
        for value in tuple(graph.initializers.values()):
            _widen_initializer(graph, value, (BFLOAT16,))
        for node in tuple(graph):
            rounded = [value for value in node.outputs if value.dtype == BFLOAT16]
            _widen_node(node, (BFLOAT16,))
            for value in rounded:
                _round(graph, node, value)
    return _saved(model, narrow.with_name(f"{narrow.stem}_rounded.onnx"))


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let what reads a node's result read it rounded to bfloat16."""
    narrow = ir.node("Cast", [value], attributes={"to": BFLOAT16}, name=f"{value.name}_narrow")
    wide = ir.node("Cast", narrow.outputs, attributes={"to": SINGLE}, name=f"{value.name}_wide")
    for cast, dtype in ((narrow, BFLOAT16), (wide, SINGLE)):
        (out,) = cast.outputs
        out.name, out.shape, out.type = str(cast.name), value.shape, ir.TensorType(dtype)
    value.replace_all_uses_with(wide.outputs[0])
    narrow.replace_input_with(0, value)
    graph.insert_after(node, [narrow, wide])


def _saved(model: ir.Model, path: Path) -> Path:
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    return path


def _widen_initializer(graph: ir.Graph, value: ir.Value, narrow: tuple[ir.DataType, ...]) -> None:
    stored = value.const_value
    if stored is None or stored.dtype not in narrow:
        return
    if not isinstance(stored, ir.ExternalTensor):
        value.const_value = _single(stored)
        _widen_type(value, narrow)
        return
    cast = ir.node("Cast", [value], attributes={"to": SINGLE}, name=f"{value.name}_cast")
    (out,) = cast.outputs
    out.name, out.shape, out.type = f"{value.name}_fp32", value.shape, ir.TensorType(SINGLE)
    value.replace_all_uses_with(out)
    cast.replace_input_with(0, value)
    graph.insert_before(graph[0], cast)


def _widen_node(node: ir.Node, narrow: tuple[ir.DataType, ...]) -> None:
    for value in node.outputs:
        _widen_type(value, narrow)
    for name, attribute in tuple(node.attributes.items()):
        if node.op_type == "Cast" and name == "to" and attribute.as_int() in narrow:
            node.attributes[name] = ir.AttrInt64(name, int(SINGLE))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in narrow:
            node.attributes[name] = ir.AttrTensor(name, _single(attribute.as_tensor()))


def _widen_type(value: ir.Value, narrow: tuple[ir.DataType, ...]) -> None:
    if value.dtype in narrow:
        value.type = ir.TensorType(SINGLE)


def _single(tensor: ir.TensorProtocol) -> ir.Tensor[Any]:
    return ir.Tensor(tensor.numpy().astype("float32"), name=tensor.name)
