"""Random numbers of many environments, each from its own generator, drawn some steps ahead.

Letters: E environments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_STEPS = 64  # a call of a generator costs as much as some tens of numbers


class NoiseBlocks:
    """One row of noise for each environment and step; an environment's rows depend on its own generator alone.

    Args:
        rngs: one for each of E environments; used by nobody else from here on.
        draw: (rng, steps) -> array (steps, ...), the rows of one environment.
    """

    def __init__(
        self, rngs: Sequence[np.random.Generator], draw: Callable[[np.random.Generator, int], np.ndarray]
    ) -> None:
        self._rngs, self._draw, self._at = rngs, draw, _STEPS
        self._rows: list[np.ndarray] = []

    def next(self) -> np.ndarray:
        """The rows (E, ...) of the next step."""
        if self._at == _STEPS:
            self._rows = list(np.stack([self._draw(rng, _STEPS) for rng in self._rngs], axis=1))
            self._at = 0
        self._at += 1
        return self._rows[self._at - 1]
