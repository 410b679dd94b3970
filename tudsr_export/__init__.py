"""Turns a base and LoRA adapters into a bundle: merge, fold, export to ONNX, check, publish."""
