"""Engines from the graphs of a bundle: one builder for TensorRT 10.9 to 11 and TensorRT for RTX.

    library.py      which TensorRT, for which GPU
    builder.py      one graph -> one engine, with what is known about it
    listen.py       what TensorRT says meanwhile: errors, memory, layers, progress
    record.py       engine.json, the sidecar that is checked before an engine is loaded
    store.py        all engines of a bundle: where they lie, built once, published whole
    inspection.py   layers, precisions, fusions and memory as tables
    triton.py       a model repository for Triton Inference Server
    command.py      `tudsr build`, `tudsr bundle triton`

Needs a TensorRT library and numpy; neither torch nor onnx, since the machine that runs must be able to build.
"""

from __future__ import annotations

from tudsr_runtime.engines.tensorrt.builder import BuiltEngine, EngineFacts, build_engine
from tudsr_runtime.engines.tensorrt.library import TARGETS, Library, open_library

__all__ = ["TARGETS", "BuiltEngine", "EngineFacts", "Library", "build_engine", "open_library"]
