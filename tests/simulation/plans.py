"""Planned failovers of a VM that lives through all faults: prepared, taken back, forced, and failed over at any moment.

What is judged: a failover that the replica calls planned is to the last write of the primary, and no write comes after
it (R43, I8). Only an administrator's force may break that.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from primary_agent import planned_orders
from protocol.position import NO_EPOCH
from tests.simulation.oracle import Violation, difference

if TYPE_CHECKING:
    from tests.simulation.world import World

HOLDS = frozenset({"stopping", "sending", "promised", "confirmed", "taking back"})
FORCED_SHARE, FAILOVER_SECONDS = 0.15, 3.0
"""Share of the preparations that are taken back by force, and how long a failover waits for one."""


class Plans:
    """The orders of one run, at a rate and at moments of their own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = random.Random(f"{world.options.seed}/plans")
        self.unsound = False
        """Nothing follows from a token any more: somebody risked a split brain, a disk was edited, or the host of the
        primary lost power, and with it what the guest had not flushed.
        """
        self.lossless = 0
        """Failovers that were judged to have lost nothing."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Order preparations from now on, where this run has any."""
        if self.world.options.prepares:
            self._task = self.world.loop.create_task(self._run())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        rng = self.rng
        while True:
            await asyncio.sleep(rng.expovariate(self.world.options.prepares))
            self.prepare()
            await asyncio.sleep(rng.choice((rng.uniform(0, 0.05), rng.uniform(0, 1), rng.uniform(0, 4))))
            force = rng.random() < FORCED_SHARE
            while self.step in HOLDS:
                self.take_back(force=force)
                await asyncio.sleep(rng.uniform(0.1, 1))

    @property
    def step(self) -> str:
        """Of the preparation on record at the primary; empty where there is none."""
        planned = self.world.primary_record().get("planned")
        return str(planned["step"]) if planned else ""

    def prepare(self) -> None:
        self.world.count("prepare")
        self.world.order(self.world.primary, planned_orders.prepare)

    def take_back(self, *, force: bool = False) -> None:
        """Order that; refused where the replica can't be asked."""
        self.world.count("take back by force" if force else "take back")
        self.unsound = self.unsound or force
        self.world.order(self.world.primary, lambda vm: planned_orders.abort(vm, force=force))

    async def before_failover(self) -> None:
        """Have a failover that is about to come prepared, as far as that succeeds in time."""
        if not self.world.options.prepares:
            return
        end = self.world.loop.now + FAILOVER_SECONDS
        while self.world.loop.now < end and not self.world.view.record("prepared"):
            if self.step not in HOLDS:
                self.prepare()
            await asyncio.sleep(self.rng.uniform(0.05, 0.5))

    def judge(self, what: str) -> None:
        """After a failover: if it was a planned one, the primary has nothing that the replica lacks."""
        promotion = self.world.view.record("promotion")
        if not promotion or promotion.get("planned") is None or self.unsound or promotion["parent"] == NO_EPOCH:
            return
        cut = promotion["parent"], promotion["parent_segment"]
        truth, now = self.world.oracle.cuts[cut], self.world.oracle.images
        for index, (wanted, found) in enumerate(zip(truth, now, strict=True)):
            if wanted != bytes(found):
                text = f"{what} a planned failover to cut {cut[1]}: {difference(index, wanted, bytes(found))}"
                raise Violation(f"R43: the primary was written {text}")
        self.lossless += 1
