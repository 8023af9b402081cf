"""The VM on the host that it was failed over to: a guest and an oracle of its own, over the disks that it is given."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shared.nbd.backend import ExportBackend
from tests.simulation.disk import PAGE
from tests.simulation.guest import Guest
from tests.simulation.loop import Process
from tests.simulation.oracle import Oracle, Violation, difference

if TYPE_CHECKING:
    from tests.simulation.hosts import Host
    from tests.simulation.replica_view import ReplicaView
    from tests.simulation.world import World

FIRST_NUMBER, FIRST_RETURNED = 1 << 40, 1 << 48
"""The writes of a promoted guest are told from those of its primary's by their numbers."""


class PromotedVm:
    """What runs on a replica's host after a failover. Every failover begins another one, at the promoted cut."""

    def __init__(self, world: World, host: Host, view: ReplicaView, name: str) -> None:
        self.world = world
        self.host = host
        self.view = view
        self.name = name
        view.on_served = self.begin
        view.on_settled = lambda: self.check_served("the disks in which a failover has settled")
        self.guest: Guest | None = None
        self.oracle: Oracle | None = None
        self.writes = 0
        """Of all promoted guests, answered."""
        self.lives = 0
        self._running: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """The disks of a failover are served from now on; they are its cut."""
        world, cut = self.world, self.view.promoted
        assert cut is not None
        self.lives += 1
        self.oracle = Oracle(self.view.oracle.cuts[cut])
        self.guest = Guest(world.loop, world.options, self.oracle, world.fail)
        self.guest.rng = random.Random(f"{world.options.seed}/{self.name}/{self.lives}")
        self.guest.last_number = self.lives * (FIRST_NUMBER if self.host is world.replica else FIRST_RETURNED)
        tap = self.host.alive("tap")
        if tap is not None and tap in world.serving:
            self.guest.attach(tap, world.serving[tap])

    def end(self) -> None:
        """Nobody looks at these disks any more."""
        self.halt()
        if self.guest is not None:
            self.writes += self.guest.answered
            self.guest.detach()
        self.guest = self.oracle = None

    # --- load ---

    def run(self) -> None:
        """Start the VM, where its disks can't fail it: what a failed write leaves is not told from what it should."""
        options = self.world.options
        if self.guest is not None and not (options.replica_errors or options.full_replica):
            self._running = self.world.loop.create_task(self.guest.run())

    def halt(self) -> None:
        """Shut the VM down; what is under way is answered."""
        if self._running is not None:
            self._running.cancel()
            self._running = None

    # --- the tap comes and goes ---

    def attach(self, process: Process, exports: Sequence[ExportBackend]) -> None:
        if self.guest is not None:
            self.guest.attach(process, exports)

    def tap_died(self, process: Process) -> None:
        """After a kill every answered write is there."""
        if self.guest is not None and self.guest.process is process:
            self.guest.detach()
            self._check(power=False)

    def lost_power(self) -> None:
        """The host lost power: every flushed write is there (I4)."""
        if self.guest is not None:
            self.guest.reset()
            self._check(power=True)

    def _check(self, *, power: bool) -> None:
        world, oracle = self.world, self.oracle
        assert oracle is not None
        record = self.view.record("promotion")
        if not record or not record["serving"] or record["undoing"]:
            return
        try:
            (oracle.lost_power if power else oracle.killed)(self.view.shown())
        except Violation as violation:
            world.fail(violation)

    async def read_all(self) -> None:
        """Read the disks by way of their tap, before anybody writes to them: they are the cut (I6)."""
        world, guest, oracle = self.world, self.guest, self.oracle
        while guest is not None and oracle is not None and guest is self.guest:
            process, exports = guest.process, guest.exports
            if process is None or process.dead:
                await asyncio.sleep(0.05)
                continue
            size = world.options.pages * PAGE
            tasks = [process.spawn(_read(export, size)) for export in exports]
            while not (process.dead or all(task.done() for task in tasks)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            if process.dead:
                continue
            for index, (wanted, task) in enumerate(zip(oracle.images, tasks, strict=True)):
                if isinstance(found := task.result(), bytes) and found != bytes(wanted):
                    raise Violation(f"I6: what the promoted tap serves: {difference(index, bytes(wanted), found)}")
            return

    def check_served(self, what: str) -> None:
        """What is served now holds all that was answered."""
        if self.oracle is not None:
            self.oracle.check_served(self.view.shown(), what)

    def check_exactly(self, what: str) -> None:
        """The plain disks are what this VM wrote, and nothing else. Raises Violation."""
        assert self.oracle is not None and self.guest is not None
        for index, (wanted, found) in enumerate(zip(self.oracle.images, self.view.images(), strict=True)):
            if bytes(wanted) != found:
                raise Violation(f"I1: {what}: {difference(index, bytes(wanted), found)}")


async def _read(export: ExportBackend, size: int) -> bytes | OSError:
    try:
        return bytes(await export.read(0, size))
    except OSError as error:
        return error
