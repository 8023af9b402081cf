"""Work that a cancelled caller waits for: a write or a transaction that has begun is never left running behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from shared.ports import Ports

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T]) -> T:
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


async def in_steps(
    ports: Ports, steps: Generator[int], step_bytes: int, done: Callable[[int], None] | None = None
) -> None:
    """Run ``steps``, which block and yield bytes done, in a worker, about ``step_bytes`` at a time.

    ``done`` is called in the worker with what was done. Raises what the steps raise; they are closed in any case.
    """

    def work() -> bool:
        total = 0
        for count in steps:
            total += count
            if done is not None:
                done(count)
            if total >= step_bytes:
                return True
        return False

    try:
        while await finish(ports.workers.run(work)):
            pass
    finally:
        steps.close()
