"""Writes an undo log: gathers its batches in one worker while those before them are written in another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator

from replica_agent.finishing import finish
from replica_agent.layout import Layout
from replica_agent.undo_writer import Full, UndoWriter
from shared.ports import Ports
from shared.undo_log import Link, Sealed

STEP_BYTES = 4 << 20
"""Bytes that one piece of work gathers; about twice as many are in memory."""


async def write_log(
    ports: Ports,
    layout: Layout,
    path: str,
    vm: bytes,
    link: Link,
    reserve: int,
    fill: Callable[[UndoWriter], Generator[int]],
) -> Sealed:
    """Write an undo log, durably; nothing is left of it where that fails. Raises OSError or NoSpaceError."""

    def create() -> UndoWriter:
        if not ports.files.exists(layout.undo_logs):
            ports.files.make_folder(layout.undo_logs)
            ports.files.sync_folder(layout.folder)
        return UndoWriter(ports.files, path, vm, link, reserve=reserve)

    writer = await finish(ports.workers.run(create))
    try:
        await pump(ports, fill(writer), writer)
        return await finish(ports.workers.run(writer.finish))
    except (Exception, asyncio.CancelledError):
        await finish(ports.workers.run(writer.discard))
        raise


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

    async def write(batches: list[Full]) -> None:
        # Made only when the task runs: one that is cancelled before leaves nothing unawaited.
        await finish(ports.workers.run(writer.write, batches))

    try:
        more = True
        while more:
            more = await finish(ports.workers.run(step))
            if writing is not None:
                await writing
            writing = asyncio.ensure_future(write(writer.take()))
        assert writing is not None
        await writing
    except GeneratorExit:
        # The loop is gone, and the workers with it: nothing can be awaited any more.
        raise
    except BaseException:
        steps.close()
        if writing is not None:
            await finish(_end(writing))
        raise


async def _end(task: asyncio.Task[None]) -> None:
    """Wait for a task whose outcome no longer matters."""
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
