"""The maths, and the registry of algorithms by name."""

from algorithms.registry import ALGORITHMS, Algorithm, finetuned_names, online_names

__all__ = ["ALGORITHMS", "Algorithm", "finetuned_names", "online_names"]
