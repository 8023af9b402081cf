"""What is done for a VM at the primary every second, or now and then, whether or not there is a session."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import structlog

from primary_agent import fencing
from primary_agent.disk_sizes import go_on
from primary_agent.planned import keep
from primary_agent.resizing import take_larger
from primary_agent.starting import begin_due
from primary_agent.tracking_loss import note_bound
from shared.errors import VmreplicaError
from shared.events import EventId
from shared.states import ReplicationState
from shared.stats import interval_text
from shared.status import to_plain

if TYPE_CHECKING:
    from primary_agent.vm import PrimaryVm

TICK_SECONDS = 1.0
TAP_STATUS_SECONDS, QUIET_STATUS_SECONDS = 5.0, 10.0
"""The tap's whole status is asked for at least so often, of one that logs nothing half as often; an answer that does
not come ends its connection."""
DESCRIBE_TICKS = 10
"""The description is brought in line with the records every so many ticks: whoever commits has done it mostly."""

log = structlog.get_logger(__name__)


class Clockwork:
    """That of one VM. ``run`` ends by being cancelled, or with an error of the store."""

    def __init__(self, vm: PrimaryVm) -> None:
        self._vm = vm
        self._parts = vm.parts
        self._replication = vm.parts.replication
        self._clock = vm.parts.surroundings.ports.clock
        self._observed = float("-inf")
        """When the status of the tap was taken that was looked at last, monotonic seconds,"""
        self._written: tuple[int, int] | None = None
        """and up to where the log was written then."""

    async def run(self) -> None:
        """Count cycles, keep the tap's status fresh, and bring to its end what failed or waited for its time."""
        clock, replication, vm = self._clock, self._replication, self._vm
        for tick in itertools.count():
            await asyncio.sleep(TICK_SECONDS)
            if replication.state is ReplicationState.REPLICATING:
                interval = replication.vm.interval_seconds
                replication.statistics.tick(clock.wall(), clock.monotonic(), interval)
            else:
                replication.statistics.pause()
            await vm.refresh_tap(self._status_age())
            await vm.give_up_cancelled()
            await self._fence()
            await note_bound(self._parts)
            if tick % DESCRIBE_TICKS == 0:
                await replication.describe()
            await replication.store_runs()
            await self._tell_observations()
            await take_larger(vm)
            await go_on(vm)
            async with vm.ordering:
                await begin_due(self._parts)
                await keep(self._parts)
            self._parts.streaming.add(clock.monotonic(), self._parts.churn.streamed_bytes)
            if replication.statistics.is_due(clock.wall()):
                await self._tell_statistics()

    def _status_age(self) -> float:
        """How old the tap's status may be, in seconds. What becomes of tracking and cuts is told without asking."""
        connection = self._parts.tap.connection
        quiet = connection is not None and connection.written_end() == self._written
        return QUIET_STATUS_SECONDS if quiet else TAP_STATUS_SECONDS

    async def _fence(self) -> None:
        """Have the tap refuse changes, or not; what fails is tried again at the next tick."""
        try:
            await fencing.follow(self._parts)
        except (VmreplicaError, OSError) as error:
            log.info("the tap could not be told of the failover", vm=self._vm.name, reason=str(error))

    async def _tell_observations(self) -> None:
        """Sizes of disks, and how full the log is: an event for each change."""
        connection = self._parts.tap.connection
        if connection is None:
            return
        self._parts.precedence.quiet(connection.status, connection.refreshed)
        if connection.refreshed == self._observed:
            return
        self._observed, self._written = connection.refreshed, connection.written_end()
        for seen in self._parts.observer.observe(connection.status, self._clock.monotonic()):
            await self._replication.note(self._replication.event(seen.event, seen.text, data=seen.data))

    async def _tell_statistics(self) -> None:
        """Event 29174, once a monitoring interval."""
        replication, now = self._replication, self._clock.wall()
        figures = replication.statistics.report(now, pending_bytes=self._parts.pending_bytes())
        replication.statistics.told(now)
        event = replication.event(EventId.STATISTICS, interval_text(self._vm.name, figures), data=to_plain(figures))
        await replication.store.commit({"statistics": replication.statistics.plain()}, [event])
