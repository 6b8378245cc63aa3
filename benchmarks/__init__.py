"""Measurements as modules: `python -m benchmarks.<name>` prints JSON lines."""
