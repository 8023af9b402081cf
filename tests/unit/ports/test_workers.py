"""Tests of the worker threads: results, errors, cancellation that leaves no file closed under running work, bounds."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.errors import InvalidStateError
from shared.ports.kernel import BACKGROUND_NICE, SESSION_NICE
from shared.ports.workers import ThreadWorkers


@pytest.fixture
async def workers() -> AsyncIterator[ThreadWorkers]:
    workers = ThreadWorkers(2, waiting_max=1)
    yield workers
    await workers.close()


class Gate:
    """Work that says when it runs and ends when it is let."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.free = threading.Event()
        self.ended = False

    def __call__(self, result: object = None) -> object:
        self.running.set()
        assert self.free.wait(20)
        self.ended = True
        if isinstance(result, Exception):
            raise result
        return result

    async def wait_running(self) -> None:
        assert await asyncio.to_thread(self.running.wait, 20)


async def test_result_and_thread(workers: ThreadWorkers) -> None:
    assert await workers.run(divmod, 17, 5) == (3, 2)
    assert await workers.run(threading.get_ident) != threading.get_ident()


async def test_error_reaches_the_caller(workers: ThreadWorkers) -> None:
    with pytest.raises(ZeroDivisionError):
        await workers.run(divmod, 1, 0)


async def test_stop_iteration_reaches_the_caller(workers: ThreadWorkers) -> None:
    """A future can't carry it: without care the caller would wait for ever."""
    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await workers.run(next, iter(()))


@pytest.mark.parametrize("result", [5, ValueError("late")])
async def test_cancelled_caller_hears_of_it_when_the_work_has_ended(workers: ThreadWorkers, result: object) -> None:
    gate = Gate()
    task = asyncio.ensure_future(workers.run(gate, result))
    await gate.wait_running()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    gate.free.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert gate.ended
    assert caught.value.__cause__ is (result if isinstance(result, Exception) else None)


async def test_timeout_works_although_it_is_held_back(workers: ThreadWorkers) -> None:
    gate = Gate()
    asyncio.get_running_loop().call_later(0.1, gate.free.set)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await workers.run(gate)
    assert gate.ended


async def test_accepted_work_runs_although_its_caller_is_cancelled(workers: ThreadWorkers) -> None:
    gates = [Gate() for _ in range(3)]
    tasks = [asyncio.ensure_future(workers.run(gate)) for gate in gates]
    for gate in gates[:2]:
        await gate.wait_running()
    tasks[2].cancel()
    await asyncio.sleep(0.01)
    assert not gates[2].running.is_set()
    for gate in gates:
        gate.free.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[2], asyncio.CancelledError)
    assert gates[2].ended


async def test_only_so_much_waits_and_the_rest_never_begins_when_cancelled(workers: ThreadWorkers) -> None:
    gates = [Gate() for _ in range(5)]
    tasks = [asyncio.ensure_future(workers.run(gate)) for gate in gates]
    for gate in gates[:2]:
        await gate.wait_running()
    assert len(workers._running) == 3
    tasks[4].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[4]
    for gate in gates:
        gate.free.set()
    await asyncio.gather(*tasks[:4])
    assert [gate.ended for gate in gates] == [True, True, True, True, False]


async def test_callers_are_served_in_order() -> None:
    workers = ThreadWorkers(1, waiting_max=0)
    order: list[int] = []
    await asyncio.gather(*(workers.run(order.append, number) for number in range(50)))
    assert order == list(range(50))
    await workers.close()


async def test_close_waits_for_accepted_work_and_refuses_more() -> None:
    workers, gate = ThreadWorkers(1), Gate()
    task = asyncio.ensure_future(workers.run(gate, "done"))
    await gate.wait_running()
    closing = asyncio.ensure_future(workers.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    with pytest.raises(InvalidStateError, match="closed"):
        await workers.run(gate)
    gate.free.set()
    await closing
    assert await task == "done"
    await workers.close()


async def test_all_threads_work_at_once() -> None:
    workers = ThreadWorkers(4)
    barrier = threading.Barrier(4, timeout=20)
    await asyncio.gather(*(workers.run(barrier.wait) for _ in range(4)))
    await workers.close()


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": 1, "waiting_max": -1}])
def test_senseless_sizes_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="can do no work"):
        ThreadWorkers(**arguments)


async def test_background_threads_stand_back_and_others_do_not() -> None:
    background, ordinary = ThreadWorkers(2, background=True), ThreadWorkers(2)

    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = nice()
    try:
        assert await background.run(nice) == min(19, max(before, BACKGROUND_NICE))
        assert await ordinary.run(nice) == before == nice()
    finally:
        await background.close()
        await ordinary.close()


async def test_session_stands_back_while_there_is_background_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, however many works there are; it comes forward a while after the last, or when the workers are closed."""
    taken: list[int] = []
    refusals = [False, True]

    def stand_back(nice: int) -> bool:
        taken.append(nice)
        # The kernel takes it only now and then: it is tried again with the next work.
        return refusals.pop(0) if refusals else True

    monkeypatch.setattr("shared.ports.workers.stand_back", stand_back)
    monkeypatch.setattr("shared.ports.workers.BACKGROUND_SECONDS", 0.0)
    workers = ThreadWorkers(2, background=True)
    first, second, third = Gate(), Gate(), Gate()
    works = []
    for gate in (first, second):
        works.append(asyncio.ensure_future(workers.run(gate)))
        await gate.wait_running()
    assert taken == [SESSION_NICE, SESSION_NICE]
    first.free.set()
    await works[0]
    works.append(asyncio.ensure_future(workers.run(third)))
    await third.wait_running()
    second.free.set()
    await works[1]
    await asyncio.sleep(0)
    assert taken == [SESSION_NICE, SESSION_NICE]
    third.free.set()
    await works[2]
    async with asyncio.timeout(20):
        while taken[-1] != 0:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
    await workers.close()
    assert taken == [SESSION_NICE, SESSION_NICE, 0]


async def test_closing_comes_forward_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def stand_back(nice: int) -> bool:
        taken.append(nice)
        return True

    monkeypatch.setattr("shared.ports.workers.stand_back", stand_back)
    workers = ThreadWorkers(1, background=True)
    await workers.run(divmod, 1, 1)
    await workers.close()
    assert taken == [SESSION_NICE, 0]
