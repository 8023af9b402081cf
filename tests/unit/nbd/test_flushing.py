"""Flushes that come together share one flush, but never one that began before them (I4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from shared.nbd.constants import Errno
from shared.nbd.flushing import FlushGate


class Disk:
    """Counts flushes; each waits for its gate."""

    def __init__(self) -> None:
        self.begun = 0
        self.error = 0
        self.raises = False
        self.gate = asyncio.Event()
        self.tasks: list[asyncio.Future[None]] = []

    async def flush(self) -> int:
        self.begun += 1
        await self.gate.wait()
        if self.raises:
            raise RuntimeError("a bug")
        return self.error

    def start(self, work: Awaitable[None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_flush_begins_after_the_request_that_it_answers() -> None:
    """I4: a request that arrives while a flush runs is not covered by it."""
    disk = Disk()
    gate = FlushGate(disk.flush, disk.start)
    answers: list[str] = []
    gate.request(lambda error: answers.append(f"a{error}"))
    await turns()
    gate.request(lambda error: answers.append(f"b{error}"))
    gate.request(lambda error: answers.append(f"c{error}"))
    await turns()
    assert (disk.begun, answers) == (1, [])
    disk.gate.set()
    await turns()
    assert disk.begun == 2
    assert answers[0] == "a0"
    assert sorted(answers[1:]) == ["b0", "c0"]


async def test_a_failed_flush_fails_for_all_that_shared_it() -> None:
    disk = Disk()
    disk.error = Errno.ENOSPC
    disk.gate.set()
    gate = FlushGate(disk.flush, disk.start)
    answers: list[int] = []
    gate.request(answers.append)
    gate.request(answers.append)
    await turns()
    assert answers == [Errno.ENOSPC, Errno.ENOSPC]
    disk.error = 0
    gate.request(answers.append)
    await turns()
    assert answers[2] == 0, "the gate works on"


async def test_a_flush_that_raises_leaves_nobody_waiting() -> None:
    disk = Disk()
    disk.raises = True
    gate = FlushGate(disk.flush, disk.start)
    answers: list[int] = []
    gate.request(answers.append)
    await turns()
    gate.request(answers.append)
    disk.gate.set()
    await turns()
    assert answers == [Errno.EIO, Errno.EIO]
    with pytest.raises(RuntimeError):
        await disk.tasks[0]
