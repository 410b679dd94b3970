"""The layers of a finished engine, read from TensorRT's own listing.

Name: __myl_MulAddSilu_3, LayerType: kgen, Inputs: [ { Name: x, ..., Datatype: Half, ... }], ...,
Outputs: [ { ... Datatype: Half ... }], TacticName: __myl_MulAddSilu_0x..., StreamId: 0,
Metadata: [ONNX Layer: node_silu_3][ONNX Layer: node_group_norm_2]
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

ATTENTION = re.compile(r"f?mha|flash|attention", re.IGNORECASE)
"""How TensorRT's kernels of fused attention are called: fmha_v2, _gemm_mha_v2, ..."""
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
        outputs = re.search(r"Outputs: \[(.*?)\], TacticName:", rest)
        tactic = re.search(r"TacticName: ([^,]*)", rest)
        yield Layer(
            line["name"],
            line["kind"],
            tactic[1].strip() if tactic else "",
            tuple(re.findall(r"Datatype: (\w+)", outputs[1])) if outputs else (),
            tuple(re.findall(r"\[ONNX Layer: (.*?)\]", rest)),
        )
