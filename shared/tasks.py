"""Waiting for news and running coroutines together, so that every task has an owner and every error an addressee."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from shared.ports import Workers

T = TypeVar("T")


class Signal:
    """Something changed: wakes all that wait. Check the condition, then ``wait`` without awaiting in between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake everybody who waits now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Return at the next :meth:`notify`."""
        await self._event.wait()

    async def wait_for(self, seconds: float) -> bool:
        """Return at the next :meth:`notify` with True, or after ``seconds`` with False."""
        event = self._event
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return event.is_set()
        return True


async def together(main: Coroutine[Any, Any, T], *others: Coroutine[Any, Any, None]) -> T:
    """Run ``main`` with ``others`` beside it; return its result when it ends, cancelling and awaiting the others.

    The first error of any of them (in their order, where several fail at once) cancels the rest and is raised as it
    is. Another coroutine that simply returns lets the rest go on. Cancelling the caller cancels all.
    """
    loop = asyncio.get_running_loop()
    first: asyncio.Task[T] = loop.create_task(main)
    tasks: list[asyncio.Task[Any]] = [first, *(loop.create_task(other) for other in others)]
    waiting: set[asyncio.Task[Any]] = set(tasks)
    try:
        while not first.done():
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    # Raises what it ended with, if it did not simply return.
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return first.result()


class Works:
    """Work in workers whose files must stay open until it has ended, also where its caller was cancelled."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._running: dict[asyncio.Task[Any], None] = {}

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """As ``Workers.run``; :meth:`settle` knows of it."""
        task: asyncio.Task[T] = asyncio.get_running_loop().create_task(self._workers.run(work, *args))
        self._running[task] = None
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def settle(self) -> None:
        """Wait until nothing is under way any more; then files may be closed."""
        while self._running:
            await asyncio.wait(list(self._running))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._running[task]
        # Where the caller is gone nobody else looks at the outcome.
        if not task.cancelled():
            task.exception()
