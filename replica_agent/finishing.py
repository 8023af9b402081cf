"""Work that a cancelled caller waits for: a write or a transaction that has begun is never left running behind."""

from __future__ import annotations

from collections.abc import Callable, Generator

from shared.ports import Ports
from shared.tasks import uninterrupted as finish

__all__ = ["finish", "in_steps"]


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
