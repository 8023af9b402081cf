"""A bounded queue between a connection that receives and the one task that stores: each takes all that waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from shared.tasks import Signal

T = TypeVar("T")

Admit = Callable[[int], Awaitable[None]]
"""Asked before so many bytes are stored. Raises NoSpaceError where they may not be."""

INTAKE_BYTES = 8 << 20
ITEM_COST = 512
"""An item costs at least this much of the bound, so that many small ones are bounded, too."""


class Intake(Generic[T]):
    """Items in order, of at most about ``limit`` bytes together with those being stored."""

    def __init__(self, limit: int = INTAKE_BYTES) -> None:
        self._limit = limit
        self._items: deque[tuple[T, int]] = deque()
        self._waiting = 0
        self._storing = 0
        self._changed = Signal()

    async def put(self, item: T, size: int) -> None:
        """Queue an item; waits while the queue is full."""
        while self._waiting + self._storing >= self._limit:
            await self._changed.wait()
        self._items.append((item, ITEM_COST + size))
        self._waiting += ITEM_COST + size
        self._changed.notify()

    async def take(self, most: int) -> list[T]:
        """The next items, up to about ``most`` bytes; waits for one. What was taken before counts as stored."""
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
