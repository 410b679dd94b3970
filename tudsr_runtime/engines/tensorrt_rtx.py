"""TensorRT for RTX as a back end; see `tudsr_runtime.engines.tensorrt`."""

from __future__ import annotations

from tudsr_runtime.engines.tensorrt import TensorRT

BACKEND = TensorRT("tensorrt-rtx")
