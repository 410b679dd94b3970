"""From a base and LoRA adapters to a bundle: merge, fold what is constant, export to ONNX, check, publish."""
