"""A numpy Generator's state as six 64-bit words, so that states are arrays only."""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1


def pack_generator(rng: np.random.Generator) -> np.ndarray:
    """The state of a PCG64 generator, uint64 (6,): state and increment as two words each, and the spare 32 bits."""
    state = rng.bit_generator.state
    words = state["state"]
    parts = [words["state"] >> 64, words["state"] & _MASK, words["inc"] >> 64, words["inc"] & _MASK]
    return np.array([*parts, state["has_uint32"], state["uinteger"]], dtype=np.uint64)


def unpack_generator(words_6: np.ndarray) -> np.random.Generator:
    """The generator that ``pack_generator`` was given."""
    high, low, inc_high, inc_low, has_uint32, uinteger = (int(word) for word in words_6)
    bits = np.random.PCG64()
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": inc_high << 64 | inc_low},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
    return np.random.Generator(bits)
