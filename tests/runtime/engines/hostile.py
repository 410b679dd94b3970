"""Graphs that no export wrote: damaged, of other programs, or made to do harm. One function each, by name.

Each makes the bytes of a UNet's ONNX file for latents of a shape; `FOREIGN` says what becomes of a bundle
that holds it: its exit code, and words of the line that says why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Foreign:
    """`make(shape)` gives the file; with `exit_code` and `words`, a pattern, `tudsr upscale` ends."""

    make: Callable[[Shape], bytes]
    exit_code: int = 5
    words: str = "graph|model"
    openvino: int | None = None
    """Where OpenVINO is content with it, or sees it otherwise."""


def model(nodes: list[Any], shape: Shape, initializers: Any = (), output: Any = None, opset: int = 17) -> Any:
    """A model from x of that shape to y of that shape, or of `output`."""
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape if output is None else output)
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(operator: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def constant(name: str, values: Any, dtype: str) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(values, dtype), name)


def identity(shape: Shape) -> bytes:
    return bytes(model([node("Identity", "x")], shape).SerializeToString())


def garbage(_shape: Shape) -> bytes:
    return np.random.default_rng(0).bytes(4096)


def escapes(_shape: Shape) -> bytes:
    """What would clear a terminal and set its title, were it shown."""
    return b"\x1b]0;owned\x07\x1b[2J\xff\xfe" * 40


def empty(_shape: Shape) -> bytes:
    return b""


def web_page(_shape: Shape) -> bytes:
    return b"<!DOCTYPE html><html><body>404</body></html>"


def truncated(shape: Shape) -> bytes:
    return identity(shape)[:-7]


def unknown_operator(shape: Shape) -> bytes:
    return bytes(model([node("Teleport", "x")], shape).SerializeToString())


def unknown_domain(shape: Shape) -> bytes:
    made = model([node("Conjure", "x", domain="com.example.magic")], shape)
    made.opset_import.add(domain="com.example.magic", version=1)
    return bytes(made.SerializeToString())


def of_the_future(shape: Shape) -> bytes:
    return bytes(model([node("Identity", "x")], shape, opset=999).SerializeToString())


def terminal_codes_in_a_name(shape: Shape) -> bytes:
    made = model([node("Tele\x1b[31mport", "x", name="\x1b]0;owned\x07")], shape)
    return bytes(made.SerializeToString())


def no_text_in_a_name(shape: Shape) -> bytes:
    """Protobuf's strings are UTF-8; nothing keeps a file from holding others."""
    return bytes(model([node("TeleportXX", "x")], shape).SerializeToString()).replace(b"XX", b"\xff\xfe")


def external_outside(shape: Shape) -> bytes:
    return _external(shape, "../../outside.bin", 0)


def external_missing(shape: Shape) -> bytes:
    return _external(shape, "absent.bin", 0)


def external_device(shape: Shape) -> bytes:
    return _external(shape, "/dev/zero", 0)


def external_beyond(shape: Shape) -> bytes:
    """Weights that begin far behind the end of a file that is there: the graph's own."""
    return _external(shape, "model.onnx", 1 << 40)


def _external(shape: Shape, location: str, offset: int) -> bytes:
    from onnx import TensorProto

    weight = constant("w", np.ones(1 << 10), "float32")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", "4096")):
        weight.external_data.add(key=key, value=value)
    total = node("ReduceMean", "w", "m", keepdims=0)
    return bytes(model([total, node("Add", "x m")], shape, [weight]).SerializeToString())


def dynamic_shape(shape: Shape) -> bytes:
    made = model([node("Identity", "x")], ("n", *shape[1:]), output=("n", *shape[1:]))
    return bytes(made.SerializeToString())


def another_size(shape: Shape) -> bytes:
    return identity((*shape[:2], 8, 8))


def two_inputs(shape: Shape) -> bytes:
    made = model([node("Add", "x x2")], shape)
    made.graph.input.add().CopyFrom(made.graph.input[0])
    made.graph.input[1].name = "x2"
    return bytes(made.SerializeToString())


def of_doubles(shape: Shape) -> bytes:
    made = model([node("Identity", "x")], shape)
    for end in (made.graph.input[0], made.graph.output[0]):
        end.type.tensor_type.elem_type = 11
    return bytes(made.SerializeToString())


def lies_about_its_output(shape: Shape) -> bytes:
    """It announces the latent's own shape, and gives another one when it runs."""
    low, high = constant("low", [0], "int64"), constant("high", [4], "int64")
    axes, count = constant("axes", [3], "int64"), node("NonZero", "x", "n")
    # Depends on the content of x, so that nothing can be known before.
    width = node("Shape", "n", "s", start=0, end=1)
    ends = [node("Min", "s high", "e"), node("Slice", "x low e axes")]
    return bytes(model([count, width, *ends], shape, [low, high, axes]).SerializeToString())


def fails_when_it_runs(shape: Shape) -> bytes:
    """An index that depends on x, beyond what is there."""
    axes = constant("axes", [0, 1, 2, 3], "int64")
    steps = [
        node("ReduceSum", "x axes", "t", keepdims=0),
        node("IsNaN", "t", "f"),
        node("Cast", "f", "i", to=7),
        node("Add", "i far", "j"),
        node("Gather", "x j", "g", axis=2),
        node("ReduceMean", "g", "m", keepdims=0),
        node("Add", "x m"),
    ]
    return bytes(model(steps, shape, [axes, constant("far", 10**6, "int64")]).SerializeToString())


def endless(shape: Shape) -> bytes:
    """A loop whose condition stays true, without a count: it adds nothing, for ever."""
    from onnx import TensorProto, helper

    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    before = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    after = helper.make_tensor_value_info("c2", TensorProto.BOOL, [])
    carried = helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)
    made = helper.make_tensor_value_info("b", TensorProto.FLOAT, shape)
    body = helper.make_graph(
        [node("Identity", "c", "c2"), node("Sin", "a", "b")], "body", [count, before, carried], [after, made]
    )
    loop = node("Loop", "forever yes x", "y", body=body)
    ends = [constant("yes", True, "bool"), constant("forever", 2**62, "int64")]
    return bytes(model([loop], shape, ends).SerializeToString())


def plant(bundle: Path, component: str, graph: bytes) -> None:
    """Put the graph into a bundle as `write_bundle` makes it, whose manifest then lists it."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    for variant in manifest["components"][component]["variants"]:
        (file,) = variant["files"]
        (bundle / file["path"]).write_bytes(graph)
        file["sha256"], file["bytes"] = hashlib.sha256(graph).hexdigest(), len(graph)
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def times(value: float) -> Callable[[Shape], bytes]:
    return lambda shape: bytes(
        model([node("Mul", "x v")], shape, [constant("v", [value], "float32")]).SerializeToString()
    )


def plus(value: float) -> Callable[[Shape], bytes]:
    return lambda shape: bytes(
        model([node("Add", "x v")], shape, [constant("v", [value], "float32")]).SerializeToString()
    )


FOREIGN = {
    "garbage": Foreign(garbage),
    "escapes": Foreign(escapes),
    "empty": Foreign(empty),
    "web page": Foreign(web_page),
    "truncated": Foreign(truncated),
    "unknown operator": Foreign(unknown_operator, words="Teleport"),
    "unknown domain": Foreign(unknown_domain, words="Conjure|magic"),
    "of the future": Foreign(of_the_future, words="999|opset", openvino=0),
    "terminal codes in a name": Foreign(terminal_codes_in_a_name, words="Tele"),
    "no text in a name": Foreign(no_text_in_a_name),
    "external data outside": Foreign(external_outside, words="outside.bin|external"),
    "external data that is not there": Foreign(external_missing, words="absent.bin|external"),
    "external data of a device": Foreign(external_device, words="/dev/zero|external"),
    "external data beyond the end": Foreign(external_beyond),
    "dynamic shape": Foreign(dynamic_shape, words="the manifest says"),
    "another size": Foreign(another_size, words="the manifest says"),
    "two inputs": Foreign(two_inputs, words="the manifest says"),
    "of doubles": Foreign(of_doubles, words="the manifest says"),
    "lies about its output": Foreign(lies_about_its_output, words="dimensions|manifest says|announces"),
    "fails when it runs": Foreign(fails_when_it_runs, openvino=0),
    "times 1e38": Foreign(times(1e38), 9),
    "negated": Foreign(times(-1), 9),
    "shifted by 0.7": Foreign(plus(0.7), 9),
    "constant": Foreign(times(0), 9),
}
