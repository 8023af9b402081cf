"""Tests of what is received and not stored yet: bounds of one connection, and those that all of them share."""

from __future__ import annotations

import asyncio

from protocol.bulk import Bulk
from protocol.messages import Close, MessageType
from replica_agent.intake import ITEM_COST, Intake
from shared.budget import Budget
from shared.inbox import MESSAGE_COST, Inbox

KIB = 1 << 10


def message(size: int) -> Bulk:
    return Bulk(MessageType.BLOCKS, memoryview(bytearray(size)), compressed=False, raw_length=size)


def test_own_bound_holds_and_lets_go_at_half() -> None:
    inbox = Inbox(64 * KIB)
    while not inbox.full:
        inbox.put(message(16 * KIB))
    assert len(inbox) == 4
    inbox.take()
    assert not inbox.low
    inbox.take()
    inbox.take()
    assert inbox.low


def test_small_messages_are_bounded_too() -> None:
    inbox = Inbox(64 * KIB)
    while not inbox.full:
        inbox.put(Close(text=""))
    assert len(inbox) == 64 * KIB // MESSAGE_COST + 1


def test_shared_budget_holds_all_up_and_each_may_go_on_one_piece_at_a_time() -> None:
    budget = Budget(40 * KIB)
    one, other = Inbox(1 << 20, budget), Inbox(1 << 20, budget)
    while not one.full:
        one.put(message(8 * KIB))
    assert len(one) == 5
    # It holds nothing, so that it may read: nobody waits for what another one does.
    assert not other.full
    other.put(message(8 * KIB))
    assert other.full
    other.take()
    assert other.low
    budget.take(40 * KIB)
    while len(one):
        assert not one.low
        one.take()
    assert one.low
    assert budget.used == 40 * KIB
    assert budget.highest == 40 * KIB + 5 * (8 * KIB + MESSAGE_COST)


def test_what_a_lost_connection_left_counts_no_longer() -> None:
    budget = Budget(40 * KIB)
    inbox = Inbox(1 << 20, budget)
    inbox.put(message(100))
    inbox.put(message(100))
    inbox.close()
    assert budget.used == 0
    inbox.take()
    inbox.put(message(100))
    inbox.close()
    assert budget.used == 0
    assert len(inbox) == 2


async def test_intake_waits_for_the_shared_budget_and_gives_it_back() -> None:
    budget = Budget(10 * KIB)
    budget.take(10 * KIB)
    intake: Intake[int] = Intake(budget=budget)
    await intake.put(1, KIB)
    second = asyncio.ensure_future(intake.put(2, KIB))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not second.done()
    assert await intake.take(KIB) == [1]
    assert not second.done()
    third = asyncio.ensure_future(intake.take(KIB))
    await second
    assert await third == [2]
    assert budget.used == 10 * KIB + KIB + ITEM_COST
    intake.close()
    assert budget.used == 10 * KIB
