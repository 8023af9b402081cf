"""Turns to dial: so many at a time for each replica, in the order in which they came, and none is lost."""

from __future__ import annotations

import asyncio

from primary_agent.dialing_queue import AT_ONCE, DialingQueue
from shared.ports import Address
from shared.ports.admission import HALF_OPEN_MAX

HERE, THERE = Address(host="beta", port=8443, tls=True), Address(host="gamma", port=8443, tls=True)


async def test_so_many_at_a_time_and_the_first_come_first() -> None:
    queue = DialingQueue(at_once=3)
    inside: list[int] = []
    most = 0
    order: list[int] = []

    async def dial(number: int) -> None:
        nonlocal most
        async with queue.turn(HERE):
            inside.append(number)
            order.append(number)
            most = max(most, len(inside))
            await asyncio.sleep(0)
            inside.remove(number)

    await asyncio.gather(*(dial(number) for number in range(50)))
    assert (most, order) == (3, list(range(50)))


async def test_a_replica_that_hangs_holds_up_no_other() -> None:
    queue = DialingQueue(at_once=1)
    async with queue.turn(HERE):
        async with asyncio.timeout(5), queue.turn(THERE):
            pass
        assert queue.turn(HERE).locked() and not queue.turn(THERE).locked()


async def test_who_gives_up_waiting_leaves_its_turn_to_the_next() -> None:
    queue = DialingQueue(at_once=1)
    turn = queue.turn(HERE)
    await turn.acquire()
    first, second = (asyncio.ensure_future(turn.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    turn.release()
    async with asyncio.timeout(5):
        assert await second


def test_a_replica_accepts_more_than_one_primary_dials() -> None:
    assert 2 * AT_ONCE <= HALF_OPEN_MAX
