"""Waiting for news and running coroutines together, so that every task has an owner and every error an addressee."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Signal:
    """Something changed: wakes all that wait. Check the condition, then ``wait`` without awaiting in between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake everybody who waits now."""
        self._event.set()
        self._event = asyncio.Event()

    def upcoming(self) -> asyncio.Event:
        """Set by the next :meth:`notify`: for whoever awaits something else between the condition and the wait."""
        return self._event

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


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end and return its result, even if the caller is cancelled meanwhile.

    The cancellation is raised when the work has ended; an error of the work is then its cause.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except Exception:
            break
    if cancelled is not None:
        raise cancelled from task.exception()
    return task.result()


async def together(main: Coroutine[Any, Any, T], *others: Coroutine[Any, Any, None]) -> T:
    """Run ``main`` with ``others`` beside it; return its result when it ends, cancelling and awaiting the others.

    The first error of any of them (in their order, where several fail at once) cancels the rest and is raised as it
    is. Another coroutine that simply returns lets the rest go on. Cancelling the caller cancels all.
    """
    first: asyncio.Task[T] = asyncio.get_running_loop().create_task(main)
    await _run_until(first.done, [first, *_tasks(others)])
    return first.result()


async def all_of(*works: Coroutine[Any, Any, None]) -> None:
    """Run all beside each other until all have ended. The first error cancels the rest and is raised as it is."""
    tasks = _tasks(works)
    await _run_until(lambda: all(task.done() for task in tasks), tasks)


def _tasks(works: Sequence[Coroutine[Any, Any, None]]) -> list[asyncio.Task[Any]]:
    loop = asyncio.get_running_loop()
    return [loop.create_task(work) for work in works]


async def _run_until(ended: Callable[[], bool], tasks: list[asyncio.Task[Any]]) -> None:
    """Wait until ``ended()``, looking at the tasks in their order whenever one is done; then end all of them."""
    waiting: set[asyncio.Task[Any]] = set(tasks)
    try:
        while not ended():
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    # Raises what it ended with, if it did not simply return.
                    task.result()
    except GeneratorExit:
        # The loop is gone, and the tasks with it: nothing can be awaited any more.
        raise
    except BaseException:
        await _end(tasks)
        raise
    await _end(tasks)


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Return when one of the waits does; the others are given up."""
    tasks = [asyncio.get_running_loop().create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
