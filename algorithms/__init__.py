"""The maths, and the registry of algorithms by name."""

from algorithms.registry import ALGORITHMS, Algorithm, online_names

__all__ = ["ALGORITHMS", "Algorithm", "online_names"]
