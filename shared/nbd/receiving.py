"""Holds what one connection received: a small buffer for ever, a large one for as long as a large request needs it."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Callable

from shared.nbd.memory import Lease, MemoryBudget

BASE_CAPACITY = (2 << 20) + 4096
"""Bytes of the buffer that every connection has; a request that doesn't fit needs memory from the budget."""
MAXIMUM_BASES = 2
"""Base buffers of one connection while changes that wait keep earlier ones pinned."""
_SMALL_REST = 16 << 10
"""A rest of at most this many bytes is moved to the buffer's front, so that the front stays in the CPU's cache."""
_COMFORTABLE_ROOM = 64 << 10
_READ_TO_END = 64 << 10
"""With at least this much missing, reading stops where the request ends, so that nothing has to be moved."""


class ReceiveBuffer:
    """Memory to receive into. Anonymous pages: taken when first touched, given back to the system when dropped."""

    __slots__ = ("capacity", "lease", "pins", "view")

    def __init__(self, capacity: int, lease: Lease | None = None) -> None:
        self.view = memoryview(mmap.mmap(-1, capacity))
        self.capacity = capacity
        self.lease = lease
        self.pins = 0


class Inbox:
    """Received bytes ``view[start:end]`` that were not taken yet, and the room behind them.

    Changes that are not finished pin the buffer that holds their payload: pinned bytes are never moved or
    overwritten (I17). ``wake`` is called when ``arrange`` is worth another try.
    """

    __slots__ = (
        "_base",
        "_bases",
        "_budget",
        "_progress",
        "_request",
        "_stalled",
        "_stop",
        "_wake",
        "buffer",
        "end",
        "start",
        "total",
        "view",
    )

    def __init__(
        self,
        budget: MemoryBudget,
        progress: Callable[[], int | None],
        stalled: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        self.start = 0
        self.end = 0
        self.total = 0
        """Bytes received since the connection began."""
        self._budget = budget
        self._progress = progress
        self._stalled = stalled
        self._wake = wake
        self._base = ReceiveBuffer(BASE_CAPACITY)
        self._bases = 1
        self._request: asyncio.Future[Lease] | None = None
        self._use(self._base)

    def _use(self, buffer: ReceiveBuffer) -> None:
        self.buffer = buffer
        self.view = buffer.view
        self._stop = buffer.capacity

    def room(self) -> memoryview:
        """Where the next bytes go; not empty after ``arrange`` returned True."""
        return self.view[self.end : self._stop]

    def received(self, count: int) -> None:
        """``count`` bytes went into what ``room`` returned last."""
        self.end += count
        self.total += count

    def arrange(self, needed: int) -> bool:
        """Make room so that ``needed`` bytes from ``start`` fit, more than are there now; False: wait for ``wake``."""
        if needed > BASE_CAPACITY:
            if not self._arrange_large(needed):
                return False
        elif not self._arrange_base(needed):
            return False
        request_end = self.start + needed
        missing = request_end - self.end
        self._stop = request_end if missing >= _READ_TO_END else self.buffer.capacity
        return True

    def _arrange_base(self, needed: int) -> bool:
        buffer = self.buffer
        rest = self.end - self.start
        if buffer.lease is not None:
            return self._replace(self._base if not self._base.pins else None)
        if not buffer.pins:
            if not rest:
                self.start = self.end = 0
            elif self.start and (rest <= _SMALL_REST or self.start + needed > buffer.capacity):
                self.view[:rest] = self.view[self.start : self.end]
                self.start = 0
                self.end = rest
            return True
        fits = self.start + needed <= buffer.capacity
        if fits and buffer.capacity - self.end >= _COMFORTABLE_ROOM:
            return True
        return self._replace(None) or fits

    def _replace(self, base: ReceiveBuffer | None) -> bool:
        """Go on in ``base``, or in a further base buffer if there may be one."""
        if base is None:
            if self._bases >= MAXIMUM_BASES:
                return False
            self._bases += 1
            base = ReceiveBuffer(BASE_CAPACITY)
        former = self._base
        self._base = base
        if former is not base and not former.pins:
            self._bases -= 1
        self._carry_over(base)
        return True

    def _arrange_large(self, needed: int) -> bool:
        if self.buffer.lease is not None and self.start + needed <= self.buffer.capacity:
            return True
        if self._request is None:
            self._request = self._budget.acquire(needed, self._payload_progress, self._stalled)
            if not self._request.done():
                self._request.add_done_callback(self._granted)
        if not self._request.done():
            return False
        lease = self._request.result()
        self._request = None
        self._carry_over(ReceiveBuffer(needed, lease))
        return True

    def _payload_progress(self) -> int | None:
        """None when no large payload is being received: what holds the memory then is not the client's doing."""
        if self.buffer.lease is None or self.end == self.buffer.capacity:
            return None
        return self._progress()

    def _granted(self, request: asyncio.Future[Lease]) -> None:
        if not request.cancelled():
            self._wake()

    def _carry_over(self, target: ReceiveBuffer) -> None:
        """Take the rest along into ``target``; a large buffer that nothing pins is given back."""
        former = self.buffer
        rest = self.end - self.start
        if rest:
            target.view[:rest] = former.view[self.start : self.end]
        self.start = 0
        self.end = rest
        self._use(target)
        if former.lease is not None and not former.pins:
            former.lease.release()

    def pin(self) -> ReceiveBuffer:
        """Keep the current buffer's bytes as they are until ``unpin``."""
        self.buffer.pins += 1
        return self.buffer

    def unpin(self, buffer: ReceiveBuffer) -> None:
        """The payloads in ``buffer`` are done with."""
        buffer.pins -= 1
        if buffer.pins:
            return
        if buffer.lease is not None:
            if buffer is not self.buffer:
                buffer.lease.release()
        elif buffer is not self._base:
            self._bases -= 1

    def close(self) -> None:
        """Give back what the budget granted; pinned buffers follow when they are unpinned."""
        request, self._request = self._request, None
        if request is not None and not request.cancel() and not request.cancelled():
            request.result().release()
        former = self.buffer
        self._use(self._base)
        if former.lease is not None and not former.pins:
            former.lease.release()
