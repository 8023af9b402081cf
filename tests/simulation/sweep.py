"""One resync, and a participant of it that dies in a given call of a port: the sweep over all calls that it makes.

A story without other faults: the disks are edited while no tap has them, which requires a compare of everything, the
guest goes on writing, and the resync is ordered. From then on the calls of a process are counted, to the commit and a
while behind it, and it is killed in one of them; or its host loses power. Whatever comes is healed by itself, and the
oracle judges it as in any other run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from shared.states import ReplicationState
from tests.simulation.chaos import Chaos, edit_page
from tests.simulation.constants import DISKS
from tests.simulation.disk import PAGE
from tests.simulation.hooks import replaced
from tests.simulation.hosts import Host
from tests.simulation.loop import Process
from tests.simulation.options import Options, calm
from tests.simulation.run import Result, run
from tests.simulation.world import World

PARTS = (("P", "agent"), ("P", "tap"), ("R", "agent"))
EDITED_PAGES = (3, 4, 9, 17, 30)
STORY_SECONDS = 12.0
POLL_SECONDS = 0.02
INTO_SECONDS = 0.08
"""After the order so long until the log fails: the compare is under way then."""
BEHIND_SECONDS = 1.0
"""So long after the commit calls are still counted: the merge belongs to it."""


@dataclass(frozen=True, slots=True)
class Death:
    """Process ``role`` of ``host`` dies in its ``call``-th call since the order, with ``power`` its host as well."""

    host: str
    role: str
    call: int
    power: bool = False


@dataclass(slots=True)
class Story:
    """The story of one run; ``calls`` are those that each part made until the resync was over.

    ``rounds``: the log of the resync fails in its middle, so that another round follows (R32).
    """

    death: Death | None = None
    rounds: bool = False
    calls: dict[tuple[str, str], int] = field(default_factory=dict)
    committed: bool = False
    died: bool = False
    _before: dict[tuple[str, str], tuple[Process, int]] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def run(self, seed: int, *planted: AbstractContextManager[Any]) -> Result:
        """Live it, perhaps with a planted bug."""
        return run(self.options(seed), patches=(replaced(Chaos, "start", self._instead_of), *planted))

    @staticmethod
    def options(seed: int) -> Options:
        return calm(
            seed, seconds=STORY_SECONDS, calm_start=True, pages=32, interval=1.0, write_rate=15.0, in_flight=4,
            largest=8, slow=0.005, cold=0.0, newest=2, hourly=0,
        )  # fmt: skip

    def _instead_of(self, start: Callable[[Chaos], None]) -> Callable[[Chaos], None]:
        def begin(chaos: Chaos) -> None:
            start(chaos)
            self._tasks.add(chaos.world.loop.create_task(self._live(chaos)))

        return begin

    async def _live(self, chaos: Chaos) -> None:
        world = chaos.world
        # Or it would begin before the calls are counted.
        world.configure(resync_mode="manual")
        await self._edit(world)
        await _reached(world, ReplicationState.WAITING_FOR_START_RESYNCHRONIZE)
        # The session has come back then.
        await asyncio.sleep(BEHIND_SECONDS)
        for host, role in PARTS:
            process = _host(world, host).alive(role)
            assert process is not None
            self._before[host, role] = (process, process.operations)
        if self.death is not None:
            process, operations = self._before[self.death.host, self.death.role]
            process.die_at = operations + self.death.call
            process.on_death.append(self._note_death)
            if self.death.power:
                world.doomed.add(process)
        orders = world.loop.create_task(_order_until_begun(world))
        if self.rounds:
            await _reached(world, ReplicationState.RESYNCHRONIZING)
            await asyncio.sleep(INTO_SECONDS)
            chaos.fail_log("write")
        await orders
        await _reached(world, ReplicationState.REPLICATING)
        await asyncio.sleep(BEHIND_SECONDS)
        self.committed = True
        self.calls = {part: process.operations - before for part, (process, before) in self._before.items()}

    def _note_death(self) -> None:
        self.died = True

    async def _edit(self, world: World) -> None:
        """Another program writes pages of both disks while no tap has them."""
        host = world.primary
        host.no_taps_until = world.loop.now + 1.0
        world.kill(host, "tap")
        await asyncio.sleep(0.6)
        for index in range(DISKS):
            for page in EDITED_PAGES:
                content = world.rng.randbytes(PAGE)
                edit_page(host, world.disk_path(index), page, content)
                world.oracle.edited(index, page * PAGE, content, world.disks())


def _host(world: World, name: str) -> Host:
    return next(host for host in world.hosts if host.name == name)


async def _reached(world: World, state: ReplicationState) -> None:
    while world.primary_record().get("state") != state.value:  # noqa: ASYNC110 - a record tells nobody
        await asyncio.sleep(POLL_SECONDS)


async def _order_until_begun(world: World) -> None:
    """An order that a death has swallowed, or that is refused while a part is away, is given again."""
    while world.primary_record().get("state") == ReplicationState.WAITING_FOR_START_RESYNCHRONIZE.value:
        world.order(world.primary, lambda vm: vm.resume(resynchronize=True))
        await asyncio.sleep(0.5)
