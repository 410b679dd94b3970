"""Graphs of a few operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


def write_graph(path: Path, *operators: str, dtype: str = "float16", domain: str = "") -> Path:
    """A chain of operators on (1, 4, 8, 8); a `Conv` gets weights."""
    onnx = pytest.importorskip("onnx", reason="writing the test's graph needs onnx")
    helper, types = onnx.helper, {"float16": onnx.TensorProto.FLOAT16, "float32": onnx.TensorProto.FLOAT}
    kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(dtype)
    weights = onnx.numpy_helper.from_array(kernel, "w")
    nodes = []
    for i, operator in enumerate(operators):
        conv = operator == "Conv"
        extra = {"Conv": {"pads": [1, 1, 1, 1]}, "Cast": {"to": types[dtype]}}.get(operator, {})
        home = domain if operator[:2] == "My" else ""
        nodes.append(
            helper.make_node(
                operator,
                [f"t{i}", "w"] if conv else [f"t{i}"],
                [f"t{i + 1}"],
                name=f"the_{operator.lower()}",
                domain=home,
                **extra,
            )
        )
    ends = [
        helper.make_tensor_value_info(name, types[dtype], [1, 4, 8, 8]) for name in ("t0", f"t{len(nodes)}")
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path
