"""Benchmarks behind the numbers of the documentation. From the repository: python -m benchmarks.NAME."""
