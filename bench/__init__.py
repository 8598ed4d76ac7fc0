"""Benchmarks: they call the functions production calls, with the peer or bound beside them in the same run."""
