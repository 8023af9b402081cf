"""Signals, and coroutines that run together: no error is lost, and nothing outlives its owner."""

from __future__ import annotations

import asyncio

import pytest

from shared.tasks import Signal, all_of, together


class Planned(Exception):
    pass


class Killed(BaseException):
    """As the simulation ends a process."""


async def for_ever(ended: list[str], name: str) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(name)


async def fail(error: BaseException) -> None:
    raise error


async def test_a_signal_wakes_all_that_wait_and_nobody_later() -> None:
    signal = Signal()
    waiting = [asyncio.create_task(signal.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    signal.notify()
    await asyncio.gather(*waiting)
    assert not await signal.wait_for(0.0)


async def test_waiting_for_a_signal_tells_whether_it_came() -> None:
    signal = Signal()
    waiting = asyncio.create_task(signal.wait_for(60))
    await asyncio.sleep(0)
    signal.notify()
    assert await waiting


async def test_together_returns_mains_result_and_ends_the_others() -> None:
    ended: list[str] = []

    async def main() -> int:
        await asyncio.sleep(0)
        return 7

    assert await together(main(), for_ever(ended, "a"), for_ever(ended, "b")) == 7
    assert ended == ["a", "b"]


async def test_another_that_returns_lets_main_go_on() -> None:
    done = asyncio.Event()

    async def other() -> None:
        done.set()

    async def main() -> str:
        await done.wait()
        await asyncio.sleep(0)
        return "over"

    assert await together(main(), other()) == "over"


@pytest.mark.parametrize("error", [Planned(), Killed()])
async def test_the_first_error_is_raised_as_it_is_and_ends_the_rest(error: BaseException) -> None:
    ended: list[str] = []
    with pytest.raises(type(error)) as caught:
        await together(for_ever(ended, "main"), for_ever(ended, "other"), fail(error))
    assert caught.value is error
    assert ended == ["main", "other"]


async def test_of_several_errors_the_first_in_order_is_raised() -> None:
    with pytest.raises(Planned, match="first"):
        await together(for_ever([], "main"), fail(Planned("first")), fail(Planned("second")))


async def test_cancelling_the_caller_ends_all() -> None:
    ended: list[str] = []
    task = asyncio.create_task(together(for_ever(ended, "main"), for_ever(ended, "other")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["main", "other"]


async def test_all_of_waits_for_all_and_stops_at_the_first_error() -> None:
    seen: list[int] = []

    async def step(number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)
        seen.append(number)

    await all_of(step(3), step(1), step(2))
    assert seen == [1, 2, 3]
    ended: list[str] = []
    with pytest.raises(Planned):
        await all_of(for_ever(ended, "a"), fail(Planned()))
    assert ended == ["a"]
    await all_of()
