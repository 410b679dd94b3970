"""How much a graph computes: the multiply-adds of its convolutions and matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import NodeProto, ValueInfoProto

Shapes = dict[str, tuple[int, ...]]


def count_macs(model: Path) -> int:
    """The multiply-adds of one run of an ONNX graph of fixed shapes; its weights are not read.

    Additions, norms, activations and resizes are not counted: they are below a hundredth.
    """
    graph = onnx.shape_inference.infer_shapes(onnx.load(model, load_external_data=False)).graph
    shapes: Shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes |= {value.name: _fixed(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    return sum(COUNTED[node.op_type](node, shapes) for node in graph.node if node.op_type in COUNTED)


def _fixed(value: ValueInfoProto) -> tuple[int, ...]:
    return tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)


def _convolution(node: NodeProto, shapes: Shapes) -> int:
    """Every output takes one product of each weight that leads to it."""
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _transposed_convolution(node: NodeProto, shapes: Shapes) -> int:
    """Every input takes one product of each weight that leads from it."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _product(node: NodeProto, shapes: Shapes) -> int:
    """Every output takes as many products as the left matrix has columns."""
    left, result = shapes[node.input[0]], shapes[node.output[0]]
    return math.prod(result) * left[-1]


def _general_product(node: NodeProto, shapes: Shapes) -> int:
    """As a product; the left matrix may be transposed."""
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    left, result = shapes[node.input[0]], shapes[node.output[0]]
    return math.prod(result) * left[0 if turned else 1]


COUNTED: dict[str, Callable[[NodeProto, Shapes], int]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "MatMul": _product,
    "Gemm": _general_product,
}
