"""Real randomness: all of it is the kernel's."""

from __future__ import annotations

import os
import random


class SystemRandom:
    """Randomness of this host (shared.ports.Random)."""

    def __init__(self) -> None:
        self._source = random.SystemRandom()

    def bytes(self, count: int) -> bytes:
        return os.urandom(count)

    def uniform(self, low: float, high: float) -> float:
        return self._source.uniform(low, high)
