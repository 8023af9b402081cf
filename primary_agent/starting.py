"""Waits, with the session open, until a resync or an initial replication is to begin."""

from __future__ import annotations

import asyncio

from primary_agent.judgement import causes_of, is_history_lost
from primary_agent.parts import Parts
from primary_agent.scope import is_bounded
from shared.planning import ReplicaView
from shared.states import PrimaryEvent, ReplicationState

HEALTH_POLL_SECONDS = 0.2


class Starting:
    """The start of one session's compare: who asked for it, and whether it may begin."""

    def __init__(self, parts: Parts, replica: ReplicaView) -> None:
        self._parts = parts
        self._replication = parts.replication
        self._replica = replica

    async def until_started(self) -> None:
        """Returns once a compare is under way by the record's state."""
        while True:
            state, news = self._replication.state, self._replication.changed.upcoming()
            if state in (ReplicationState.INITIAL_REPLICATION_IN_PROGRESS, ReplicationState.RESYNCHRONIZING):
                return
            lost = is_history_lost(causes_of(self._replication))
            automatic = self._replication.vm.auto_resynchronize and not lost
            wanted = automatic or self._replication.record.resync_wanted
            if state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE and not wanted:
                # What is bounded costs little, and does not wait for anybody (I12): a catch-up runs in every mode.
                wanted = await self.is_bounded()
            if state is ReplicationState.WAITING_FOR_START_RESYNCHRONIZE and wanted and not news.is_set():
                # The gate (I20): a resync that starts by itself waits until connectivity is proven.
                if self._parts.may_compare():
                    await self._replication.transition(PrimaryEvent.RESYNC_STARTED, "connectivity is healthy")
                else:
                    await asyncio.sleep(HEALTH_POLL_SECONDS)
                continue
            await news.wait()

    async def is_bounded(self) -> bool:
        """Whether a compare may be limited to what is in doubt (R28)."""
        return await is_bounded(self._parts.tap, self._replica, causes_of(self._replication))
