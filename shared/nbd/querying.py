"""Answers what may have to wait for a disk without changing it: cold READs, CACHE and BLOCK_STATUS, many at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from shared.nbd import replies
from shared.nbd.backend import ExportBackend, errno_of
from shared.nbd.constants import Command, Errno
from shared.nbd.latency import LatencyMeter
from shared.nbd.memory import MemoryBudget
from shared.nbd.requests import Query
from shared.nbd.sending import Outbox

MAXIMUM_RUNNING = 16
"""Queries of one connection that are under way at once."""
MAXIMUM_COLD_BYTES = 4 << 20
"""Bytes that one connection's cold reads hold at once, apart from large ones."""
LARGE_READ = 2 << 20
"""A READ above this many bytes takes its memory from the budget."""
STATUS_WINDOW = 256 << 20
"""Bytes whose extents are looked up at a time, so that a fragmented file can't fill the memory."""


class QueryRunner:
    """The queries of one connection to one export; they run concurrently up to a cap, the others wait in order.

    ``wake`` is called after each; ``stalled`` ends the connection that holds memory for nothing; ``failed`` gets what
    an export raised against its promise. No query begins while the client does not take its replies.
    """

    __slots__ = (
        "_budget",
        "_bytes",
        "_export",
        "_failed",
        "_latency",
        "_outbox",
        "_stalled",
        "_tasks",
        "_waiting",
        "_wake",
    )

    def __init__(
        self,
        export: ExportBackend,
        outbox: Outbox,
        budget: MemoryBudget,
        latency: LatencyMeter,
        *,
        wake: Callable[[], None],
        stalled: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._export = export
        self._outbox = outbox
        self._budget = budget
        self._latency = latency
        self._wake = wake
        self._stalled = stalled
        self._failed = failed
        self._waiting: deque[Query] = deque()
        self._tasks: dict[asyncio.Task[None], int] = {}
        self._bytes = 0

    @property
    def pending(self) -> int:
        """Queries not answered yet."""
        return len(self._waiting) + len(self._tasks)

    def submit(self, query: Query) -> None:
        """Answer the query some time from now."""
        self._waiting.append(query)
        self.start()

    def start(self) -> None:
        """Begin as many of the waiting queries as the caps allow."""
        while self._waiting and len(self._tasks) < MAXIMUM_RUNNING and self._outbox.sendable():
            query = self._waiting[0]
            size = query.length if query.command is Command.READ and query.length <= LARGE_READ else 0
            if self._bytes and self._bytes + size > MAXIMUM_COLD_BYTES:
                return
            self._waiting.popleft()
            self._bytes += size
            task = asyncio.get_running_loop().create_task(self._run(query))
            self._tasks[task] = size
            task.add_done_callback(self._done)

    def cancel(self) -> None:
        """Nobody waits for the answers any more."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until no query is under way."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._bytes -= self._tasks.pop(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._failed(error)
            return
        self.start()
        self._wake()

    async def _run(self, query: Query) -> None:
        try:
            if query.command is Command.READ:
                await self._read(query)
            elif query.command is Command.BLOCK_STATUS:
                await self._block_status(query)
            else:
                await self._export.cache(query.offset, query.length)
                self._outbox.put(replies.done([query.cookie]))
        except OSError as error:
            text = f"{query.command.name} of {query.length} bytes at {query.offset}: {error}"
            self._outbox.put_failure(query.cookie, errno_of(error), text)

    async def _read(self, query: Query) -> None:
        if query.length <= LARGE_READ:
            await self._read_and_send(query)
            return
        sending = False

        def progress() -> int | None:
            return self._outbox.taken() if sending else None

        async with self._budget.hold(query.length, progress, self._stalled):
            await self._read_and_send(query)
            self._outbox.send_out()
            sending = True
            # The bytes now sit in the send queue: the memory is free when the client has taken most of them.
            await self._outbox.wait_until_sendable()

    async def _read_and_send(self, query: Query) -> None:
        data = await self._export.read(query.offset, query.length)
        self._latency.reads.add(1, query.begun)
        if len(data) == query.length:
            self._outbox.put_data(query.cookie, query.offset, data)
        else:
            text = f"READ of {query.length} bytes at {query.offset} found only {len(data)}"
            self._outbox.put_failure(query.cookie, Errno.EIO, text)

    async def _block_status(self, query: Query) -> None:
        """Look range after range up until the request, the reply or (with REQ_ONE) the first extent is full."""
        descriptors: list[tuple[int, int]] = []
        limit = 1 if query.one else replies.MAXIMUM_DESCRIPTORS
        position, end = query.offset, query.offset + query.length
        while position < end and len(descriptors) <= limit:
            length = min(STATUS_WINDOW, end - position)
            extents = await self._export.extents(position, length)
            replies.add_descriptors(descriptors, extents, position, position + length)
            position += length
        self._outbox.put(replies.block_status(query.cookie, descriptors[:limit]))
