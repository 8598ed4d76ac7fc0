"""Dure: one cloud out of a data centre of mixed AI chips."""

__version__ = "0.1.0"
