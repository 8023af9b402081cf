"""What becomes of a failover: of any point, undone or committed at any moment, while its guest writes and faults come.

After an undo the replica goes on with its old primary, or is failed over again. After a commit everything settles in
the disks. What is judged at the end: the pair is in sync again by itself (I12), or the disks hold exactly what the
promoted guest wrote, whatever the old primary does (I8).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from shared.states import ReplicationState
from tests.simulation.loop import Process
from tests.simulation.oracle import Oracle, Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

POLL_SECONDS = 0.25
SERVED_SECONDS = 100.0
"""How long a failover, an undo, or the settling may take, with all faults about."""
AIM = 100
"""A promoted tap's death is aimed at one of so many operations to come."""
LIVES_MAX = 4
"""Failovers of one run."""


async def until(world: World, condition: Callable[[], bool], seconds: float, what: str, situation: str = "") -> None:
    """Wait for that; raises Violation where it does not come about."""
    end = world.loop.now + seconds
    while not condition():
        if world.loop.now > end:
            raise Violation(f"I12: {what} did not come about within {seconds:g} s{situation}")
        await asyncio.sleep(POLL_SECONDS)


def in_sync(primary: dict[str, Any], replica: dict[str, Any], point: tuple[bytes, int] | None, oracle: Oracle) -> bool:
    """Whether both records say that they replicate, in the same epoch, and ``point`` has all that was written."""
    if not primary or not replica:
        return False
    if any(ReplicationState(each["state"]) is not ReplicationState.REPLICATING for each in (primary, replica)):
        return False
    return (
        primary["epoch"] == replica["epoch"]
        and point is not None
        and point[0] == replica["epoch"]
        and tuple(map(bytes, oracle.images)) == oracle.cuts.get(point)
    )


class Failover:
    """Fails over at some moment, again and again until that is accepted."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = random.Random(f"{world.options.seed}/turns")
        self.orders: list[tuple[Process, asyncio.Task[Any]]] = []
        self.disaster: Callable[[], Awaitable[None]] | None = None
        """What comes before it, where that is no order."""

    @property
    def decided(self) -> bool:
        """Whether it is known if there was a failover."""
        return self.world.view.promoted is not None or all(p.dead or task.done() for p, task in self.orders)

    async def run(self) -> None:
        """The first one, at its time."""
        assert self.world.options.promote_at is not None
        await asyncio.sleep(self.world.options.promote_at)
        await self.world.plans.before_failover()
        if self.disaster is not None:
            await self.disaster()
        await self.order()

    async def order(self) -> None:
        """Fail over."""
        world = self.world
        while world.view.promoted is None:
            world.count("failover")
            process = world.replica.alive("agent")
            older = bool(world.options.older) and self.rng.random() < world.options.older
            task = world.order(world.replica, self._older if older else lambda vm: vm.failover())
            if process is not None and task is not None:
                self.orders.append((process, task))
            await asyncio.sleep(world.rng.uniform(0.05, 1))

    async def _older(self, vm: Any) -> None:
        """To a point that is there, or to what the disks are at."""
        applied = vm.parts.ledger.replication.applied
        points = [*vm.parts.history.positions(), *([applied.position] if applied is not None else [])]
        point = self.rng.choice(points) if points else None
        if point is not None:
            self.world.view.asked.add((point.epoch, point.segment))
            self.world.count("failover to a chosen point")
        await vm.failover(point)


class Turns:
    """The life of a run from its first failover on."""

    def __init__(self, world: World, failover: Failover) -> None:
        self.world = world
        self.failover = failover
        self.rng = random.Random(f"{world.options.seed}/turns/ends")
        self._killing: asyncio.Task[None] | None = None

    async def go(self) -> bool:
        """Live on. True where a failover was committed, False where the old primary is the primary again."""
        world, rng, options = self.world, self.rng, self.world.options
        if options.kill_replica:
            self._killing = world.loop.create_task(self._kill_taps())
        while True:
            await until(world, lambda: world.view.handed_over, SERVED_SECONDS, "serving the promoted disks")
            if rng.random() < 0.5:
                await world.promoted.read_all()
            world.promoted.run()
            await asyncio.sleep(rng.expovariate(options.ends))
            if rng.random() >= options.undone:
                await self._commit()
                return True
            await self._undo()
            await asyncio.sleep(rng.uniform(0, 3))
            if world.promoted.lives >= LIVES_MAX or rng.random() < 0.5:
                return False
            await self.failover.order()

    async def _kill_taps(self) -> None:
        """The promoted tap dies as often as its agent."""
        world, rng = self.world, random.Random(f"{self.world.options.seed}/turns/kills")
        while True:
            await asyncio.sleep(rng.expovariate(world.options.kill_replica))
            tap = world.replica.alive("tap")
            if tap is not None and rng.random() < world.options.aimed:
                tap.die_at = tap.operations + rng.randint(1, AIM)
            else:
                world.kill(world.replica, "tap")

    async def _undo(self) -> None:
        world = self.world
        # Nothing has to be kept of what it wrote.
        world.promoted.end()
        end, undone = world.loop.now + SERVED_SECONDS, world.view.undone
        while world.view.undone == undone:
            world.count("undo")
            world.order(world.replica, lambda vm: vm.undo_failover())
            await asyncio.sleep(self.rng.uniform(0.05, 1))
            if world.loop.now > end:
                raise Violation(f"I12: an undo did not come about within {SERVED_SECONDS:g} s")

    async def _commit(self) -> None:
        world = self.world
        end = world.loop.now + SERVED_SECONDS
        while world.view.record("promotion")["committed_time"] is None:
            world.count("commit")
            world.order(world.replica, lambda vm: vm.promotion.commit())
            await asyncio.sleep(self.rng.uniform(0.05, 1))
            if world.loop.now > end:
                raise Violation(f"I12: a commit did not come about within {SERVED_SECONDS:g} s")
        await asyncio.sleep(self.rng.uniform(0, 2))

    def stop(self) -> None:
        """The faults are over."""
        if self._killing is not None:
            self._killing.cancel()

    async def settle(self) -> None:
        """Faults are over: all that was written has to get into the disks, and is all that is there."""
        world = self.world
        await until(
            world, lambda: not world.view.record("promotion")["layered"], SERVED_SECONDS, "settling what was written"
        )
        world.promoted.halt()
        guest = world.promoted.guest
        if guest is not None:
            await until(world, lambda: not guest.in_flight, SERVED_SECONDS, "an answer to the promoted guest")
        world.promoted.check_exactly("after a commit has settled")

    def takes_writes(self) -> bool:
        """Whether the VM can be started at the old primary again."""
        guest = self.world.guest
        return bool(guest.exports) and not any(export.read_only for export in guest.exports)
