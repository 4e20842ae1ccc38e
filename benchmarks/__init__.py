"""Benchmarks that reproduce the numbers of the documentation. Run from the repository: python -m benchmarks.NAME."""
