"""Keeps one connection's changes in order, also while some wait, and drops what a dead client left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from shared.nbd.backend import ExportBackend, Mutation
from shared.nbd.receiving import Inbox, ReceiveBuffer
from shared.nbd.requests import Batch


@dataclass(slots=True)
class Changes:
    """Mutations that are performed by one call, and the FLUSHes that follow them. ``cookies`` go with ``mutations``."""

    mutations: list[Mutation]
    cookies: list[bytes]
    fua: bool
    flushes: list[bytes]
    begun: float = 0.0
    """When they were decoded, on average: monotonic seconds."""
    pinned: list[ReceiveBuffer] = field(default_factory=list)


class ChangeQueue:
    """The changes of one connection to one export.

    ``answer`` is called when a group is done: at once on the hot path, else from the loop, and then ``wake`` follows
    when more can be submitted. While an awaitable of the export is pending, later changes and FLUSHes wait; how many
    may is the connection's decision (``pending``). ``failed`` gets what an export raised against its promise.
    """

    __slots__ = (
        "_answer",
        "_export",
        "_failed",
        "_future",
        "_inbox",
        "_queued",
        "_running",
        "_settled",
        "_wake",
        "pending",
    )

    def __init__(
        self,
        export: ExportBackend,
        inbox: Inbox,
        answer: Callable[[Changes], None],
        wake: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.pending = 0
        """Changes and FLUSHes received and not handed to ``answer`` yet."""
        self._export = export
        self._inbox = inbox
        self._answer = answer
        self._wake = wake
        self._failed = failed
        self._running: Changes | None = None
        self._queued: Changes | None = None
        self._future: asyncio.Future[None] | None = None
        self._settled: list[asyncio.Future[None]] = []

    def submit(self, batch: Batch) -> None:
        """Perform the batch's mutations and FLUSHes after everything submitted before."""
        if self._running is not None:
            self._enqueue(batch)
            return
        changes = Changes(batch.mutations, batch.cookies, batch.fua, batch.flushes, batch.begun)
        pending = self._export.mutate(changes.mutations) if changes.mutations else None
        if pending is None:
            self._answer(changes)
            return
        self.pending += len(changes.mutations) + len(changes.flushes)
        changes.pinned.append(self._inbox.pin())
        self._wait_for(changes, pending)

    def _enqueue(self, batch: Batch) -> None:
        self.pending += len(batch.mutations) + len(batch.flushes)
        queued = self._queued
        if queued is None:
            queued = self._queued = Changes(batch.mutations, batch.cookies, batch.fua, batch.flushes, batch.begun)
        else:
            before, more = len(queued.cookies) + len(queued.flushes), len(batch.cookies) + len(batch.flushes)
            queued.begun += (batch.begun - queued.begun) * more / (before + more)
            queued.mutations += batch.mutations
            queued.cookies += batch.cookies
            queued.fua |= batch.fua
            queued.flushes += batch.flushes
        if self._inbox.buffer not in queued.pinned:
            queued.pinned.append(self._inbox.pin())

    def _wait_for(self, changes: Changes, pending: Awaitable[None]) -> None:
        self._running = changes
        self._future = asyncio.ensure_future(pending)
        self._future.add_done_callback(self._finished)

    def _finished(self, future: asyncio.Future[None]) -> None:
        changes = self._running
        assert changes is not None
        self._running = self._future = None
        self._unpin(changes)
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is not None:
            self._abandon_queue()
            self._failed(error)
        else:
            self._conclude(changes)
            try:
                self._go_on()
            except Exception as raised:
                # Whatever an export raises against its promise ends this connection only.
                self._failed(raised)
        if self._running is None:
            self._settle()
        # Only now, when the order is settled again, may further requests come in.
        self._wake()

    def _go_on(self) -> None:
        """Perform what was queued meanwhile."""
        queued, self._queued = self._queued, None
        if queued is None:
            return
        pending = self._export.mutate(queued.mutations) if queued.mutations else None
        if pending is None:
            self._unpin(queued)
            self._conclude(queued)
        else:
            self._wait_for(queued, pending)

    def _conclude(self, changes: Changes) -> None:
        self.pending -= len(changes.mutations) + len(changes.flushes)
        self._answer(changes)

    def _unpin(self, changes: Changes) -> None:
        for buffer in changes.pinned:
            self._inbox.unpin(buffer)
        changes.pinned.clear()

    def _abandon_queue(self) -> None:
        queued, self._queued = self._queued, None
        if queued is not None:
            self._unpin(queued)

    def cancel(self) -> None:
        """The client is gone: nothing that was not begun may happen any more (its successor may send it again)."""
        self._abandon_queue()
        if self._future is not None:
            self._future.cancel()

    def settled(self) -> asyncio.Future[None]:
        """Done as soon as no change of this connection is under way or queued."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._running is None:
            future.set_result(None)
        else:
            self._settled.append(future)
        return future

    def _settle(self) -> None:
        settled, self._settled = self._settled, []
        for future in settled:
            if not future.done():
                future.set_result(None)
