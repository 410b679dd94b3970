"""Reference pipelines that `benchmarks/table3.py` times beside tudsr."""
