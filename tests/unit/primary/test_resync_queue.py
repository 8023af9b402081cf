"""The queue of compares: how many run, who comes next, and what those that wait are told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from primary_agent.resync_queue import ResyncQueue


class Work:
    """One compare that holds its place until it is told to end."""

    def __init__(self, queue: ResyncQueue, name: str, priority: int = 0, *, bounded: bool = False) -> None:
        self.name = name
        self.priority = priority
        self.told: list[str] = []
        self.runs = False
        self.end = asyncio.Event()
        self._queue = queue
        self._bounded = bounded
        self.task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        place = self._queue.place(self.name, lambda: self.priority, bounded=self._bounded, told=self.told.append)
        async with place:
            self.runs = True
            try:
                await self.end.wait()
            finally:
                self.runs = False


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def running(works: list[Work]) -> list[str]:
    return [work.name for work in works if work.runs]


async def test_so_many_run_and_the_others_follow_in_their_order() -> None:
    queue = ResyncQueue(2)
    works = [Work(queue, name) for name in "abcd"]
    await settle()
    assert running(works) == ["a", "b"]
    assert works[2].told[-1] == "place 1 of 2 in the queue; now: a, b"
    assert works[3].told[-1] == "place 2 of 2 in the queue; now: a, b"
    works[1].end.set()
    await settle()
    assert running(works) == ["a", "c"]
    assert works[3].told[-1] == "place 1 of 1 in the queue; now: a, c"
    for work in works:
        work.end.set()
    await asyncio.gather(*(work.task for work in works))
    assert (queue.running, queue.waiting) == ([], [])


async def test_catch_ups_then_priority_then_first_come() -> None:
    queue = ResyncQueue(1)
    first = Work(queue, "first")
    await settle()
    works = [
        Work(queue, "low", -5),
        Work(queue, "plain"),
        Work(queue, "high", 9),
        Work(queue, "plain too"),
        Work(queue, "catch-up", -50, bounded=True),
    ]
    await settle()
    assert works[2].told[-1] == "place 2 of 5 in the queue, priority 9; now: first"
    order = []
    current = first
    while works:
        current.end.set()
        await settle()
        current = next(work for work in works if work.runs)
        order.append(current.name)
        works.remove(current)
    current.end.set()
    assert order == ["catch-up", "high", "plain", "plain too", "low"]


async def test_priority_that_changes_counts_at_once() -> None:
    queue = ResyncQueue(1)
    works = [Work(queue, name) for name in "abc"]
    await settle()
    works[2].priority = 1
    queue.reconsider()
    await settle()
    assert works[2].told[-1].startswith("place 1 of 2 in the queue, priority 1")
    works[0].end.set()
    await settle()
    assert running(works) == ["c"]
    for work in works:
        work.end.set()
    await asyncio.gather(*(work.task for work in works))


async def test_whoever_leaves_frees_its_place_and_no_more_than_the_limit_ever_run() -> None:
    """Cancelled while waiting, while running, in the moment of its turn: no place is lost, none given twice."""
    chance = random.Random(5)
    for _ in range(30):
        queue = ResyncQueue(chance.randint(1, 3))
        works: list[Work] = []
        steps: list[Callable[[Work], object]] = [lambda work: work.task.cancel(), lambda work: work.end.set()]
        for number in range(20):
            works.append(Work(queue, str(number), chance.randint(-1, 1), bounded=chance.random() < 0.2))
            for work in chance.sample(works, min(len(works), 2)):
                chance.choice(steps)(work)
            for _ in range(chance.randint(0, 4)):
                await asyncio.sleep(0)
            assert len(running(works)) <= queue.limit
        for work in works:
            work.end.set()
        await asyncio.gather(*(work.task for work in works), return_exceptions=True)
        assert (queue.running, queue.waiting) == ([], [])
