"""Engines from the graphs of a bundle, and their runs: TensorRT 10.9 to 11 and TensorRT for RTX.

    library.py      which TensorRT, for which GPU
    builder.py      one graph -> one engine, with what is known about it
    build_log.py    what TensorRT says meanwhile: errors, memory, layers, progress
    record.py       engine.json, the sidecar that is checked before an engine is loaded
    store.py        all engines of a bundle: where they lie, built once, published whole
    layers.py       the layers of a finished engine
    inspection.py   layers, precisions, fusions and memory as tables
    comparison.py   engines against ONNX Runtime, whole and layer by layer
    backend.py      the back ends `tensorrt` and `tensorrt-rtx`
    lock.py         a lock that the garbage collector never waits for
    cuda_chain.py   tiles through engines without a stop on the host
    cuda.py         the CUDA runtime: which GPU, and calls whose failure is an error
    kernels.py      what TensorRT for RTX compiled on the GPU, kept for the next time
    triton.py       a model repository for Triton Inference Server
    command.py      `tudsr build`, `tudsr bundle triton`

Needs a TensorRT library and numpy; neither torch nor onnx, since the machine that runs must be able to build.
"""
