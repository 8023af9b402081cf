"""The precedence of a guest, on virtual time and with a tap whose answers the test gives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from primary_agent import backing_off
from primary_agent.pacing import Pacer
from primary_agent.precedence import POLL_SECONDS, Precedence
from primary_agent.progress import ResyncProgress
from protocol.hrl import Geometry
from protocol.messages import ResyncKind
from shared.errors import UnreachableError, UsageError
from shared.tap_control import GuestLatency
from tests.simulation.loop import SimulationLoop
from tests.unit.primary.test_pacing import LoopClock

MIB = 1 << 20
ALONE = 0.0005


@dataclass
class Tap:
    """Has the guest's latency; ``stretch`` is what reading makes of it (the parts of TapLink that are asked)."""

    stretch: float = 1.0
    requests: int = 1000
    """Each time somebody asks."""
    silent: bool = False
    unknown: bool = False
    """The tap is of a version that does not tell it."""
    told: GuestLatency = field(default_factory=GuestLatency)
    asked: int = 0
    alive: bool = True

    @property
    def connection(self) -> Tap:
        return self

    @property
    def client(self) -> Tap:
        return self

    async def latency(self, _timeout: float) -> GuestLatency:
        self.asked += 1
        if self.silent:
            raise UnreachableError("no answer")
        if self.unknown:
            raise UsageError("There is no method latency.")
        self.told = GuestLatency(
            reads=self.told.reads + self.requests,
            read_seconds=self.told.read_seconds + self.requests * ALONE * self.stretch,
        )
        return self.told


class World:
    def __init__(self) -> None:
        clock = LoopClock(asyncio.get_running_loop())
        self.tap = Tap()
        self.enabled = True
        self.watching: set[object] = set()
        self.precedence = Precedence(clock, cast(Any, self.tap), lambda: self.enabled, self.watching)
        self.control = self.precedence.control
        self.pacer = Pacer((self.precedence,), ())
        disk = Geometry(0, MIB, bytes(16))
        self.progress = ResyncProgress.of(bytes(16), ResyncKind.RESYNC, bytes(16), [disk], 0.0, clock)

    async def read(self) -> None:
        """A compare: a megabyte after the other, as fast as it may be."""
        while True:
            await self.pacer.disk(MIB)
            await asyncio.sleep(0.001)

    @contextlib.asynccontextmanager
    async def comparing(self) -> Any:
        tasks = [asyncio.ensure_future(work) for work in (self.precedence.watch(self.progress), self.read())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def on_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    loop = SimulationLoop()
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


def test_held_back_while_the_guest_suffers_and_shown_so() -> None:
    async def work() -> None:
        world = World()
        world.control.usual.latency = {"read": ALONE, "processor": 0.0}
        async with world.comparing():
            assert world.progress.status().held_back is None
            await asyncio.sleep(1)
            assert world.progress.status().held_back is None, "the guest feels nothing"
            world.tap.stretch = 10.0
            await asyncio.sleep(4 * POLL_SECONDS)
            held = world.progress.status().held_back
            assert held is not None
            if not held.measuring:
                assert held.latency_seconds is not None and held.usual_latency_seconds is not None
                assert held.latency_seconds > held.usual_latency_seconds
            world.enabled = False
            await asyncio.sleep(2 * POLL_SECONDS)
            assert world.progress.status().held_back is None, "it was told not to"
            world.enabled = True
            await asyncio.sleep(20)
        assert world.progress.status().held_back is None, "nothing is compared any more"
        assert not world.watching

    on_virtual_time(work())


def test_nothing_passes_in_a_pause_and_everything_after_it() -> None:
    async def work() -> None:
        world = World()
        async with world.comparing():
            while not world.control.pausing:  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(POLL_SECONDS / 10)
            assert asyncio.get_running_loop().time() < 2 * backing_off.PAUSE_SOON, "what is usual is not known"
            before = world.precedence._read
            await asyncio.sleep(POLL_SECONDS)
            assert world.control.pausing
            assert world.precedence._read <= before + MIB
            while world.control.pausing:  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(POLL_SECONDS)
            before = world.precedence._read
            await asyncio.sleep(1)
            assert world.precedence._read > before + 100 * MIB

    on_virtual_time(work())


@pytest.mark.parametrize("ends", [False, True], ids=["paused", "the compare ends meanwhile"])
def test_pause_ends_with_the_watch(*, ends: bool) -> None:
    """Whoever waits in a pause does not wait for ever."""

    async def work() -> None:
        world = World()
        watch = asyncio.ensure_future(world.precedence.watch(world.progress))
        await asyncio.sleep(POLL_SECONDS / 2)
        world.control.pausing = True
        waits = asyncio.ensure_future(world.pacer.disk(MIB))
        await asyncio.sleep(0)
        assert not waits.done()
        if ends:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        async with asyncio.timeout(10):
            await waits
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    on_virtual_time(work())


def test_tap_without_an_answer_slows_reading_down() -> None:
    async def work() -> None:
        world = World()
        async with world.comparing():
            await asyncio.sleep(1)
            assert world.precedence.rate() == 0
            world.tap.silent = True
            await asyncio.sleep(20)
            assert world.precedence.rate() == backing_off.FLOOR
            assert world.pacer.piece_bytes() == MIB
            world.tap.unknown, world.tap.silent = True, False
            await asyncio.sleep(1)
            assert world.precedence.rate() == 0

    on_virtual_time(work())


def test_usual_is_not_learned_beside_a_compare_of_another_vm() -> None:
    async def work() -> None:
        world = World()
        other = object()
        world.watching.add(other)
        for _ in range(5):
            await world.tap.latency(1.0)
            world.precedence.quiet(_status(world.tap), asyncio.get_running_loop().time())
            await asyncio.sleep(5)
        assert world.control.usual.latency == {}
        old = _status(world.tap), asyncio.get_running_loop().time()
        world.precedence.quiet(*old)
        world.watching.clear()
        # The agent looks more often than it asks: this one was taken while the other was compared.
        world.precedence.quiet(*old)
        await world.tap.latency(1.0)
        world.tap.told = GuestLatency(reads=world.tap.told.reads, read_seconds=1000.0)
        await asyncio.sleep(5)
        for _ in range(3):
            await world.tap.latency(1.0)
            world.precedence.quiet(_status(world.tap), asyncio.get_running_loop().time())
            await asyncio.sleep(5)
        assert abs(world.control.usual.latency["read"] - ALONE) < 1e-9

    on_virtual_time(work())


@dataclass
class Status:
    latency: GuestLatency


def _status(tap: Tap) -> Any:
    return Status(tap.told)
