"""The face of both kinds of limiters: two counts of one shard, and which side may go on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any


class BaseLimiter(ABC):
    """Counts inserts and samples of one shard, in items: rows, or whole episodes. Each kind adds ``insert`` and its rule."""

    def __init__(self, min_size: int) -> None:
        self.min_size = min_size  # items stored before the first sample
        self.inserted = 0  # items stored
        self.sampled = 0  # items handed to learners
        self.closed = False
        self.ceiling = math.inf  # ROWS accepted from which on inserts are held back, whatever the rule allows

    @property
    @abstractmethod
    def credit(self) -> float:
        """Items that may be sampled to be exactly where the rule wants it; negative where samples are ahead."""

    @property
    def ended(self) -> bool:
        """No row will be taken any more."""
        return self.closed

    @property
    @abstractmethod
    def exhausted(self) -> bool:
        """No more inserts are coming and everything they allow has been sampled."""

    @property
    @abstractmethod
    def held(self) -> bool:
        """The ceiling is reached: no row is stored until it is raised."""

    @abstractmethod
    def can_insert(self, n: int) -> bool:
        """Whether ``n`` more rows may be stored now."""

    @abstractmethod
    def can_sample(self, n: int) -> bool:
        """Whether ``n`` more items may be sampled now."""

    def sample(self, n: int) -> None:
        """Counts ``n`` items that were sampled."""
        self.sampled += n

    def align(self, sampled: int) -> None:
        """Puts the count of items sampled at ``sampled``: updates were lost or kept apart from this count."""
        self.sampled = sampled

    def close(self) -> None:
        """No more inserts are coming. Samples may use up what is left and then are exhausted."""
        self.closed = True

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The counts, JSON-able. Not whether it is closed: a run that is resumed inserts again."""

    @abstractmethod
    def load_state(self, state: dict[str, Any]) -> None:
        """Takes what ``state`` gave."""
