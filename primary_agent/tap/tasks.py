"""The tap's own tasks, turns and shared syncs: who waits for whom, and that no error goes unseen."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from shared.errors import InvalidStateError


class Tasks:
    """Owns tasks. An error that one of them did not handle ends the tap: it is the result of ``failure``."""

    def __init__(self) -> None:
        self.failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work``; it is over before ``settle`` returns."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.failure.done():
            self.failure.set_result(error)

    async def settle(self) -> None:
        """Wait until all have ended."""
        while self._running:
            await asyncio.wait(self._running)


class Turns:
    """Work that takes turns: each begins when the one before has ended. While ``busy``, others have to queue."""

    def __init__(self, tasks: Tasks) -> None:
        self.busy = False
        self._tasks = tasks
        self._queue: deque[Callable[[], Awaitable[None]]] = deque()
        self._pump: asyncio.Task[None] | None = None

    def queue(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do ``work`` when its turn comes. What it raises ends the tap."""
        self._queue.append(work)
        if not self.busy:
            self.busy = True
            self._pump = self._tasks.spawn(self._run())

    async def _run(self) -> None:
        while self._queue:
            await self._queue.popleft()()
        self.busy = False

    async def take(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do ``work`` in turn and wait for it; what it raises is raised here. A caller that is gone stops nothing."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def turn() -> None:
            try:
                await work()
            except Exception as error:
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(None)

        self.queue(turn)
        await done

    @staticmethod
    async def nothing() -> None:
        """A turn that only waits for those before it."""

    async def settle(self) -> None:
        """Wait until no work is under way or queued."""
        while self.busy and self._pump is not None:
            await asyncio.wait({self._pump})


class SharedSync:
    """Lets callers that want something synced at the same time share one sync: a group commit.

    ``sync`` returns why it failed, or an empty text.
    """

    def __init__(self, tasks: Tasks, sync: Callable[[], Awaitable[str]]) -> None:
        self._tasks = tasks
        self._sync = sync
        self._next: asyncio.Future[str] | None = None
        self._rounds: asyncio.Task[None] | None = None

    async def run(self) -> str:
        """The outcome of a sync that begins after this call."""
        return await asyncio.shield(self.begin())

    def begin(self) -> asyncio.Future[str]:
        """The outcome of a sync that begins after this call, as a future that others may share: to be shielded."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            if not self.running:
                self._rounds = self._tasks.spawn(self._run())
        return self._next

    @property
    def running(self) -> bool:
        return self._rounds is not None and not self._rounds.done()

    async def _run(self) -> None:
        while (current := self._next) is not None:
            # Whoever comes from now on needs the next one.
            self._next = None
            try:
                outcome = await self._sync()
            except BaseException:
                current.cancel()
                raise
            current.set_result(outcome)

    async def settle(self) -> None:
        """Wait until none is under way."""
        while self.running and self._rounds is not None:
            await asyncio.wait({self._rounds})


class Orders:
    """Orders that change what is tracked: one at a time, and none any more once a stop has begun."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._over = False

    def check(self) -> None:
        """Raises InvalidStateError once a stop has begun."""
        if self._over:
            raise InvalidStateError("The tap is stopping.", "It is tried again once the tap runs.", code="stopping")

    async def __aenter__(self) -> None:
        self.check()
        await self._lock.acquire()
        try:
            self.check()
        except BaseException:
            self._lock.release()
            raise

    async def __aexit__(self, *_error: object) -> None:
        self._lock.release()

    async def end(self) -> None:
        """Refuse orders from now on; returns when the one that is under way has ended: its log is the one to seal."""
        self._over = True
        await self._lock.acquire()
