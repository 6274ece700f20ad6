"""Benchmarks of idsel_kernels: `python -m bench`, from the root of a checkout. docs/benchmarks.md explains them."""
