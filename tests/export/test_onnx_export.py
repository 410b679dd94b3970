"""The ONNX files themselves."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from tudsr_export.onnx_export import Port, export_onnx


class Lookup(nn.Module):
    """Attends to fixed keys of a real prompt's size."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("key", torch.randn(77, 640))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.key.view(77, 10, 64).permute(1, 2, 0) * 0.5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_follows_from_constants_is_computed(precision, tmp_path):
    module = Lookup().eval().to(torch.float16 if precision == "fp16" else torch.float32)
    ports = Port("x", (1, 10, 4, 64)), Port("y", (1, 10, 4, 77))
    export_onnx(module, tmp_path / "m", *ports, precision)
    model = onnx.load(tmp_path / "m" / "model.onnx")
    assert [node.op_type for node in model.graph.node] == ["MatMul"]


@pytest.mark.parametrize(("external_from", "files"), [(10**6, 1), (10**4, 2)])
def test_weights_move_out_of_the_graph_by_size(external_from, files, tmp_path):
    ports = Port("x", (1, 10, 4, 64)), Port("y", (1, 10, 4, 77))
    export_onnx(Lookup().eval(), tmp_path / "m", *ports, "fp32", external_from)
    names = ["model.onnx", "model.onnx.data"][:files]
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == names
