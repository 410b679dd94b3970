"""The layers of a finished engine, read from TensorRT's own listing, or from its engine inspector.

Name: __myl_MulAddSilu_3, LayerType: kgen, Inputs: [ { Name: x, ..., Datatype: Half, ... }], ...,
Outputs: [ { ... Datatype: Half ... }], TacticName: __myl_MulAddSilu_0x..., StreamId: 0,
Metadata: [ONNX Layer: node_silu_3][ONNX Layer: node_group_norm_2]

That is TensorRT for RTX. TensorRT itself puts more between outputs and tactic, and says Format/Datatype;
since it has the GPU at hand, its engines are inspected: the same as JSON, with other keys in 10 than in 11.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ATTENTION = re.compile(r"f?mha|flash|attention", re.IGNORECASE)
"""How TensorRT's kernels of fused attention are called: fmha_v2, _gemm_mha_v2, ..."""
_TYPE = re.compile(
    r"\b(?:(Half|FP16)|(Float|FP32)|(BFloat16|BF16)|(FP8|Int8|Int32|Int64|Bool|UInt8))\b", re.IGNORECASE
)
_TYPES = ("Half", "Float", "BFloat16")
_LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), (?P<rest>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Layer:
    """One step of an engine: a kernel, a library call, or a signal between streams.

    `precisions` are the types that it writes ("Half", "Float"), `nodes` the graph's nodes that it computes.
    """

    name: str
    kind: str
    tactic: str
    precisions: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def fused_attention(self) -> bool:
        """Whether the layer computes attention without writing the matrix of weights to memory."""
        return ATTENTION.search(self.tactic or self.name) is not None


def read_layers(listing: str) -> tuple[Layer, ...]:
    """The layers of a listing; empty if TensorRT gave none, or in a form that is not known."""
    return tuple(_layers(listing))


def _layers(listing: str) -> Iterator[Layer]:
    for line in _LINE.finditer(listing):
        rest = line["rest"]
        outputs = re.search(r"Outputs: \[((?:\s*\{[^{}]*\},?)*)\s*\]", rest)
        tactic = re.search(r"TacticName: ([^,]*)", rest)
        yield Layer(
            line["name"],
            line["kind"],
            tactic[1].strip() if tactic else "",
            tuple(map(_type, re.findall(r"Datatype: ([^,}]+)", outputs[1]))) if outputs else (),
            tuple(re.findall(r"\[ONNX Layer: (.*?)\]", rest)),
        )


def read_inspector(text: str) -> tuple[Layer, ...]:
    """The layers that an engine inspector names in JSON; empty if it names none, or in an unknown form."""
    try:
        listed = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(_inspected(one) for one in listed if isinstance(one, dict))


def _inspected(one: dict[str, Any]) -> Layer:
    outputs = [output for output in one.get("Outputs") or () if isinstance(output, dict)]
    return Layer(
        str(one.get("Name", "")),
        str(one.get("LayerType", "")),
        str(one.get("TacticName", one.get("TacticValue", ""))),
        tuple(_type(str(output.get("Datatype") or output.get("Format/Datatype", ""))) for output in outputs),
        tuple(re.findall(r"\[ONNX Layer: (.*?)\]", str(one.get("Metadata", "")))),
    )


def _type(text: str) -> str:
    """The type in what TensorRT says of a tensor: "Half", "Row major linear FP16 format"."""
    found = _TYPE.search(text)
    if found is None:
        return text.strip()
    return next((name for name, group in zip(_TYPES, found.groups(), strict=False) if group), found[0])
