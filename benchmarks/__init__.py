"""Comparisons with other projects: `python -m benchmarks NAME`."""
