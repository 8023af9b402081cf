"""The budget for large requests: its limit, its order, and clients that hold memory for nothing."""

from __future__ import annotations

import asyncio

import pytest

from shared.nbd.memory import MemoryBudget


def nothing() -> None:
    """For holders that are never called stalled."""


def busy() -> int | None:
    return None


async def test_memory_that_is_free_is_granted_at_once() -> None:
    budget = MemoryBudget(100, 10)
    lease = budget.acquire(60, busy, nothing)
    assert lease.done()
    assert budget.used == 60
    lease.result().release()
    lease.result().release()
    assert budget.used == 0


async def test_the_limit_holds_and_grants_come_in_order() -> None:
    """I13: never more than the limit, and a small request does not overtake a large one for ever."""
    budget = MemoryBudget(100, 10)
    first = budget.acquire(60, busy, nothing)
    large = budget.acquire(90, busy, nothing)
    small = budget.acquire(10, busy, nothing)
    assert [first.done(), large.done(), small.done()] == [True, False, False]
    first.result().release()
    assert [large.done(), small.done()] == [True, True]
    assert budget.used == 100


async def test_more_than_the_limit_is_never_granted() -> None:
    with pytest.raises(ValueError, match="101 bytes can never be granted"):
        MemoryBudget(100, 10).acquire(101, busy, nothing)


async def test_a_cancelled_request_lets_the_next_one_through() -> None:
    budget = MemoryBudget(100, 10)
    held = budget.acquire(50, busy, nothing)
    cancelled = budget.acquire(100, busy, nothing)
    waiting = budget.acquire(50, busy, nothing)
    cancelled.cancel()
    held.result().release()
    assert waiting.done()
    assert budget.used == 50


async def test_cancelling_a_holder_gives_back_even_what_was_granted_in_the_same_turn() -> None:
    budget = MemoryBudget(100, 10)
    held = budget.acquire(100, busy, nothing)

    async def hold() -> None:
        async with budget.hold(100, busy, nothing):
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await asyncio.sleep(0)
    held.result().release()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert budget.used == 0


async def test_who_makes_no_progress_while_others_wait_is_called_stalled() -> None:
    budget = MemoryBudget(100, 0.01)
    called: list[str] = []
    moved = 0

    def moving() -> int:
        nonlocal moved
        moved += 1
        return moved

    def end_hung() -> None:
        called.append("hung")
        hung.result().release()

    budget.acquire(30, busy, lambda: called.append("busy"))
    budget.acquire(30, moving, lambda: called.append("moving"))
    hung = budget.acquire(40, lambda: 7, end_hung)
    async with budget.hold(40, busy, nothing):
        assert called == ["hung"]


async def test_nobody_is_called_stalled_while_nobody_waits() -> None:
    """The inspection runs only for somebody: with an empty queue there is no timer that could call anyone."""
    budget = MemoryBudget(100, 0.0)
    called: list[str] = []
    budget.acquire(60, lambda: 7, lambda: called.append("hung"))
    waiting = budget.acquire(60, busy, nothing)
    waiting.cancel()
    budget.acquire(40, busy, nothing)
    for _ in range(20):
        await asyncio.sleep(0)
    assert called == []
