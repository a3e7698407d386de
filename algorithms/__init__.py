"""The maths, and the registry of algorithms by name."""

from algorithms.registry import ALGORITHMS, Algorithm

__all__ = ["ALGORITHMS", "Algorithm"]
