"""TensorRT for RTX as a back end; see `tudsr_runtime.engines.tensorrt.backend`."""

from __future__ import annotations

from tudsr_runtime.engines.tensorrt.backend import TensorRT

BACKEND = TensorRT("tensorrt-rtx")
