"""The inbox: what was received is never lost, moved while it is pinned, or held in more memory than allowed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.nbd.memory import MemoryBudget
from shared.nbd.receiving import BASE_CAPACITY, MAXIMUM_BASES, Inbox, ReceiveBuffer

LIMIT = 40 << 20


def inbox(budget: MemoryBudget, wake: asyncio.Event | None = None) -> Inbox:
    signal = wake or asyncio.Event()
    return Inbox(budget, lambda: None, lambda: None, signal.set)


def fill(box: Inbox, data: bytes) -> int:
    """Receive as much of ``data`` as there is room for."""
    room = box.room()
    count = min(len(room), len(data))
    room[:count] = data[:count]
    box.received(count)
    return count


async def test_a_large_request_gets_memory_only_while_it_is_there() -> None:
    budget = MemoryBudget(LIMIT, 10)
    box = inbox(budget)
    data = Random(1).randbytes(3 << 20)
    assert box.arrange(28)
    taken = fill(box, data[:100])
    assert budget.used == 0
    assert box.arrange(len(data))
    assert budget.used == len(data)
    while taken < len(data):
        taken += fill(box, data[taken:])
    assert len(box.room()) == 0, "reading stops where the large request ends"
    assert box.view[box.start : box.end] == data
    box.start = box.end
    assert box.arrange(28)
    assert budget.used == 0


async def test_a_pinned_large_buffer_keeps_its_memory_until_unpinned() -> None:
    budget = MemoryBudget(LIMIT, 10)
    box = inbox(budget)
    assert box.arrange(3 << 20)
    fill(box, bytes(3 << 20))
    pinned = box.pin()
    box.start = box.end
    assert box.arrange(28)
    assert budget.used == 3 << 20
    box.unpin(pinned)
    assert budget.used == 0


async def test_only_a_payload_that_is_still_coming_can_stall() -> None:
    """When all of it is there, what holds the memory is our own work, however long that takes (I14)."""
    box = Inbox(MemoryBudget(LIMIT, 10), lambda: 7, lambda: None, lambda: None)
    assert box.arrange(3 << 20)
    lease = box.buffer.lease
    assert lease is not None
    assert lease.progress() == 7
    fill(box, bytes(3 << 20))
    assert lease.progress() is None
    pinned = box.pin()
    box.start = box.end
    assert box.arrange(28)
    assert lease.progress() is None
    box.unpin(pinned)


async def test_base_buffers_are_bounded_while_changes_are_pinned() -> None:
    """I13: a connection whose changes wait does not take memory without end."""
    box = inbox(MemoryBudget(LIMIT, 10))
    pins: list[ReceiveBuffer] = []
    received = 0
    while box.arrange(28):
        received += fill(box, bytes(BASE_CAPACITY))
        pins.append(box.pin())
        box.start = box.end
    assert received == MAXIMUM_BASES * BASE_CAPACITY
    for pinned in pins:
        box.unpin(pinned)
    assert box.arrange(28)
    assert len(box.room()) > 0


async def test_waiting_for_memory_wakes_when_it_is_there() -> None:
    budget = MemoryBudget(LIMIT, 10)
    wake = asyncio.Event()
    other = budget.acquire(LIMIT, lambda: None, lambda: None).result()
    box = inbox(budget, wake)
    assert box.arrange(28)
    fill(box, b"begin")
    assert not box.arrange(3 << 20)
    other.release()
    await wake.wait()
    assert box.arrange(3 << 20)
    assert bytes(box.view[box.start : box.end]) == b"begin"


async def test_close_gives_back_everything() -> None:
    budget = MemoryBudget(LIMIT, 10)
    holding = inbox(budget)
    assert holding.arrange(LIMIT)
    waiting = inbox(budget)
    assert not waiting.arrange(LIMIT)
    holding.close()
    waiting.close()
    assert budget.used == 0
    pinning = inbox(budget)
    assert pinning.arrange(LIMIT)
    pinned = pinning.pin()
    pinning.close()
    assert budget.used == LIMIT, "the payload is still being written"
    pinning.unpin(pinned)
    assert budget.used == 0


@dataclass
class Pinned:
    """A message whose bytes must still be right when it is unpinned."""

    buffer: ReceiveBuffer
    view: memoryview
    expected: bytes


@given(
    sizes=st.lists(
        st.sampled_from([28, 100, 4124, 70_000, 1 << 20, BASE_CAPACITY, BASE_CAPACITY + 1, 3 << 20]), max_size=12
    ),
    seed=st.integers(0, 1 << 32),
)
@pytest.mark.slow
def test_pinned_bytes_stay_as_they_are(sizes: list[int], seed: int) -> None:
    """I17: one copy of a payload, unchanged until its write is done, whatever is received meanwhile."""

    async def run() -> None:
        random = Random(seed)
        budget = MemoryBudget(LIMIT, 10)
        box = inbox(budget)
        messages = [random.randbytes(size) for size in sizes]
        stream = b"".join(messages)
        position = 0
        pins: list[Pinned] = []
        for message in messages:
            while box.end - box.start < len(message):
                # The first bytes of a message tell its length, as a header does.
                needed = 28 if box.end - box.start < 28 else len(message)
                while not box.arrange(needed):
                    check(box, pins.pop(0))
                position += fill(box, stream[position : position + random.choice([1, 28, 5000, 200_000, 1 << 20])])
            view = box.view[box.start : box.start + len(message)]
            assert bytes(view) == message
            box.start += len(message)
            if random.random() < 0.6:
                pins.append(Pinned(box.pin(), view, message))
        while pins:
            check(box, pins.pop(random.randrange(len(pins))))
        box.close()
        assert budget.used == 0

    def check(box: Inbox, pinned: Pinned) -> None:
        assert bytes(pinned.view) == pinned.expected
        box.unpin(pinned.buffer)

    asyncio.run(run())
