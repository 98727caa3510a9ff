"""Benchmarks of time, memory and FLOPs, run with `make bench`."""
