"""Caps on rates, on virtual time: what gets through, fairness between VMs, changes while it runs, day and night."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, tzinfo
from typing import Any

import msgspec

from primary_agent.pacing import Pacer, Rates
from primary_agent.record import DiskRecord, VmRecord
from shared.config_sections import RatesSection
from shared.schedule import Window
from tests.simulation.loop import SimulationLoop

MIB = 1 << 20
NIGHT = Window.parse("18:30-06:00")
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()


class LoopClock:
    """Virtual time that begins at noon."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.ahead = 0.0

    def monotonic(self) -> float:
        return self._loop.time()

    def wall(self) -> float:
        return NOON + self._loop.time() + self.ahead

    def boot_id(self) -> str:
        return "boot"

    def zone(self) -> tzinfo:
        return UTC


def vm(**settings: Any) -> VmRecord:
    disk = DiskRecord(index=0, uuid=bytes(16), path="/d", size=MIB, export="d")
    return VmRecord(
        vm=bytes(16),
        name="web",
        disks=[disk],
        replica_host="b",
        replica_port=1,
        interval_seconds=30.0,
        log_limit_bytes=0,
        created_time=0.0,
        **settings,
    )


def on_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    loop = SimulationLoop()
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


def rates(caps: RatesSection) -> tuple[Rates, LoopClock]:
    clock = LoopClock(asyncio.get_running_loop())
    return Rates(clock, caps, NIGHT), clock


async def measured(pacer: Pacer, count: int) -> float:
    """Seconds that ``count`` bytes take."""
    clock = asyncio.get_running_loop()
    before = clock.time()
    await pacer.disk(count)
    return clock.time() - before


def test_without_caps_nothing_waits() -> None:
    async def work() -> None:
        paced, _ = rates(RatesSection())
        assert await measured(paced.pacer(vm, initial=False), 1 << 40) == 0
        await paced.sender(vm).wire(1 << 40)

    on_virtual_time(work())


def test_lowest_of_all_caps_holds_and_each_kind_has_its_own() -> None:
    async def work() -> None:
        paced, _ = rates(RatesSection(resync_read_rate=[4 * MIB], initial_read_rate=[MIB]))
        own = vm(resync_read_rate=[2 * MIB])
        assert 9.5 < await measured(paced.pacer(vm, initial=False), 40 * MIB) < 10.1
        assert 19.5 < await measured(paced.pacer(lambda: own, initial=False), 40 * MIB) < 20.2
        assert 9.5 < await measured(paced.pacer(vm, initial=True), 10 * MIB) < 10.1

    on_virtual_time(work())


def test_vms_share_in_equal_parts_however_many_tasks_they_have() -> None:
    async def work() -> None:
        paced, clock = rates(RatesSection(resync_read_rate=[MIB]))
        through = {"one": 0, "many": 0}

        async def read(name: str, pacer: Pacer) -> None:
            while True:
                await pacer.disk(64 << 10)
                through[name] += 64 << 10

        one, many = (paced.pacer(vm, initial=False) for _ in range(2))
        tasks = [asyncio.ensure_future(read("one", one))]
        tasks += [asyncio.ensure_future(read("many", many)) for _ in range(7)]
        await asyncio.sleep(60)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert abs(sum(through.values()) - 60 * MIB) < MIB
        assert abs(through["one"] - through["many"]) < MIB
        assert clock.monotonic() >= 60

    on_virtual_time(work())


def test_pause_is_not_followed_by_a_burst() -> None:
    async def work() -> None:
        paced, _ = rates(RatesSection(resync_read_rate=[MIB]))
        pacer = paced.pacer(vm, initial=False)
        await pacer.disk(MIB)
        await asyncio.sleep(1000)
        assert 9.5 < await measured(pacer, 10 * MIB) < 10.1

    on_virtual_time(work())


def test_change_counts_while_it_waits() -> None:
    async def work() -> None:
        paced, _ = rates(RatesSection())
        record = vm(resync_read_rate=[1])
        pacer = paced.pacer(lambda: record, initial=False)
        task = asyncio.ensure_future(measured(pacer, 10 * MIB))
        await asyncio.sleep(100)
        assert not task.done()
        record = msgspec.structs.replace(record, resync_read_rate=[MIB])
        await asyncio.sleep(5)
        assert not task.done()
        record = msgspec.structs.replace(record, resync_read_rate=[])
        await asyncio.sleep(2)
        assert task.done()

    on_virtual_time(work())


def test_day_and_night() -> None:
    async def work() -> None:
        caps = RatesSection(resync_send_rate=[MIB, 4 * MIB], replication_send_rate=[MIB, 0])
        paced, clock = rates(caps)
        loop = asyncio.get_running_loop()
        pacer, sender = paced.pacer(vm, initial=False), paced.sender(vm)
        seconds = []
        for ahead in (0.0, 8 * 3600.0):
            clock.ahead = ahead
            for each in (pacer, sender):
                before = loop.time()
                await each.wire(20 * MIB)
                seconds.append(round(loop.time() - before))
        assert seconds == [20, 20, 5, 0]
        own, _ = rates(RatesSection(resync_send_rate=[MIB, 4 * MIB], night="11:00-13:00"))
        before = loop.time()
        own.clock = LoopClock(loop)
        await own.pacer(vm, initial=False).wire(20 * MIB)
        assert round(loop.time() - before) == 5

    on_virtual_time(work())
