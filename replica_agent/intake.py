"""A bounded queue between a connection that receives and the one task that stores: each takes all that waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from shared.budget import Budget
from shared.tasks import Signal

T = TypeVar("T")

Admit = Callable[[int], Awaitable[None]]
"""Asked before so many bytes are stored. Raises NoSpaceError where they may not be."""

INTAKE_BYTES = 8 << 20
ITEM_COST = 512
"""An item costs at least this much of the bound, so that many small ones are bounded, too."""


class Intake(Generic[T]):
    """Items in order, of at most about ``limit`` bytes together with those being stored, and within the ``budget``
    that it shares with others.
    """

    def __init__(self, limit: int = INTAKE_BYTES, budget: Budget | None = None) -> None:
        self._limit = limit
        self._budget = budget or Budget()
        self._items: deque[tuple[T, int]] = deque()
        self._waiting = 0
        self._storing = 0
        self._changed = Signal()

    async def put(self, item: T, size: int) -> None:
        """Queue an item; waits while the queue is full."""
        while self._is_full():
            await self._changed.wait()
        self._items.append((item, ITEM_COST + size))
        self._waiting += ITEM_COST + size
        self._budget.take(ITEM_COST + size)
        self._changed.notify()

    async def take(self, most: int) -> list[T]:
        """The next items, up to about ``most`` bytes; waits for one. What was taken before counts as stored."""
        self._budget.give_back(self._storing)
        self._storing = 0
        self._changed.notify()
        while not self._items:
            await self._changed.wait()
        taken: list[T] = []
        while self._items and self._storing < most:
            item, cost = self._items.popleft()
            taken.append(item)
            self._waiting -= cost
            self._storing += cost
        return taken

    async def emptied(self) -> None:
        """Wait until everything that was put is stored."""
        while self._waiting or self._storing:
            await self._changed.wait()

    def close(self) -> None:
        """Nothing is stored any more: what is left no longer counts for others."""
        self._budget.give_back(self._waiting + self._storing)
        self._items.clear()
        self._waiting = self._storing = 0

    def _is_full(self) -> bool:
        held = self._waiting + self._storing
        return held >= self._limit or (held > 0 and self._budget.exhausted)
