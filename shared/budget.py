"""Memory that many connections may take together for what they received and nobody has stored yet."""

from __future__ import annotations


class Budget:
    """A number of bytes that its users share; None for one without an end.

    Nobody is refused: where more is taken than there is, each user takes no more as long as it holds anything, so that
    all of them go on, one piece at a time, and none waits for another.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.used = 0
        self.highest = 0
        """The most that was used at once, in bytes."""

    @property
    def exhausted(self) -> bool:
        return self.limit is not None and self.used >= self.limit

    def take(self, count: int) -> None:
        """Count bytes that were received."""
        self.used += count
        self.highest = max(self.highest, self.used)

    def give_back(self, count: int) -> None:
        """Count bytes that are stored, or thrown away."""
        self.used -= count
