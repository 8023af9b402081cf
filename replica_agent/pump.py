"""Gathers an undo log's batches in one worker while those before them are written in another."""

from __future__ import annotations

import asyncio
from collections.abc import Generator

from replica_agent.finishing import finish
from replica_agent.undo_writer import UndoWriter
from shared.ports import Ports

STEP_BYTES = 4 << 20
"""Bytes that one piece of work gathers; about twice as many are in memory."""


async def pump(ports: Ports, steps: Generator[int], writer: UndoWriter) -> None:
    """Run ``steps``, which block, gather for ``writer`` and yield bytes; everything is written when it returns.

    Raises what the steps and the writer raise; nothing of either runs any more then.
    """
    writing: asyncio.Task[None] | None = None

    def step() -> bool:
        done = 0
        for count in steps:
            done += count
            if done >= STEP_BYTES:
                return True
        return False

    try:
        more = True
        while more:
            more = await finish(ports.workers.run(step))
            if writing is not None:
                await writing
            writing = asyncio.ensure_future(finish(ports.workers.run(writer.write, writer.take())))
        assert writing is not None
        await writing
    finally:
        steps.close()
        if writing is not None:
            await finish(_end(writing))


async def _end(task: asyncio.Task[None]) -> None:
    """Wait for a task whose outcome no longer matters."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
