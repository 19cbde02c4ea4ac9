"""Benchmarks on a GPU: `python -m benchmarks.gpu` (see __main__.py)."""
