"""Bounds the memory that large requests take: one budget for all connections of a server (I13)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Lease:
    """Memory granted to one connection. ``progress`` counts bytes its client moved, or is None while we are at work."""

    __slots__ = ("_budget", "last", "progress", "size", "stalled")

    def __init__(
        self,
        budget: MemoryBudget,
        size: int,
        progress: Callable[[], int | None],
        stalled: Callable[[], None],
    ) -> None:
        self.size = size
        self.progress = progress
        self.stalled = stalled
        self.last: int | None = None
        self._budget: MemoryBudget | None = budget

    def release(self) -> None:
        """Give the memory back; a second call does nothing."""
        budget, self._budget = self._budget, None
        if budget is not None:
            budget.give_back(self)


class MemoryBudget:
    """``limit`` bytes, granted in the order of asking.

    A client that holds memory and neither sends nor takes a byte for ``stall_timeout`` seconds, while another
    connection waits for memory, loses its connection: one hung client must not hold up the others. Where nobody
    waits, a client may hang as long as it likes.
    """

    def __init__(self, limit: int, stall_timeout: float) -> None:
        self.limit = limit
        self.used = 0
        self._stall_timeout = stall_timeout
        self._leases: set[Lease] = set()
        self._waiting: deque[tuple[Lease, asyncio.Future[Lease]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def acquire(
        self, size: int, progress: Callable[[], int | None], stalled: Callable[[], None]
    ) -> asyncio.Future[Lease]:
        """A future that is already done if the memory is free. Cancel it to stop waiting.

        ``size`` must not exceed the limit. Once the future is done the lease has to be released.
        """
        if size > self.limit:
            raise ValueError(f"{size} bytes can never be granted: the limit is {self.limit}")
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting.append((Lease(self, size, progress, stalled), future))
        self._grant()
        return future

    @asynccontextmanager
    async def hold(
        self, size: int, progress: Callable[[], int | None], stalled: Callable[[], None]
    ) -> AsyncIterator[Lease]:
        """Wait for the memory and give it back at the end of the block."""
        future = self.acquire(size, progress, stalled)
        try:
            lease = await future
        except asyncio.CancelledError:
            # The grant may have come in the same turn of the loop as the cancellation.
            if future.done() and not future.cancelled():
                future.result().release()
            raise
        try:
            yield lease
        finally:
            lease.release()

    def give_back(self, lease: Lease) -> None:
        """Called by ``Lease.release`` only."""
        self._leases.discard(lease)
        self.used -= lease.size
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            lease, future = self._waiting[0]
            if future.done():
                self._waiting.popleft()
                continue
            if self.used + lease.size > self.limit:
                break
            self._waiting.popleft()
            self.used += lease.size
            self._leases.add(lease)
            future.set_result(lease)
        self._watch()

    def _watch(self) -> None:
        """Look for stalled holders for as long as somebody waits."""
        if not self._waiting:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            for lease in self._leases:
                lease.last = lease.progress()
            self._timer = asyncio.get_running_loop().call_later(self._stall_timeout, self._inspect)

    def _inspect(self) -> None:
        self._timer = None
        stalled = []
        for lease in self._leases:
            progress = lease.progress()
            if progress is not None and progress == lease.last:
                stalled.append(lease)
        for lease in stalled:
            lease.stalled()
        self._grant()
