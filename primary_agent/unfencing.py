"""Lifts the fence of a VM by itself once its failover was undone at the replica (I6, I8).

The replica is asked now and then, and when the agent starts. What it tells has to be what an undo leaves and nothing
else does: it is the host that told of the failover, is not failed over, and stands in this side's own epoch, with
nothing of its own in it and all that it had received by then. A failover that was committed or reversed is told as such
for good; one that was given up for this side, a copy that was removed, brought back to an earlier state or rebuilt,
another host's, and records of this side that were rebuilt wait for an administrator.

Nothing is lost here that was not given up there: an undo is an order at the replica, which says that it drops what was
written on the promoted side. What was written on this side meanwhile is kept and replicated. Both are in the event.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from primary_agent.fencing import is_fenced, look
from primary_agent.parts import Parts
from primary_agent.record import ReplicationRecord
from primary_agent.resuming import leave_failover
from protocol.errors import ProtocolError
from protocol.messages import MAX_NAME
from protocol.position import NO_EPOCH
from shared.errors import VmreplicaError
from shared.planning import (
    CommitConfirmed,
    Decision,
    GoOnWithResync,
    NextRound,
    RestartResync,
    Resume,
    ResyncCause,
    ResyncRequired,
)
from shared.sides import ReplicaView
from shared.states import ReplicationState

ASK_SECONDS = 60.0
"""A replica that the VM is failed over to is asked so often whether that was undone."""
TAP_SECONDS = 1.0
"""Without a tap, which is needed to judge the answer, it is looked again so soon."""
SPREAD = 0.25
"""By up to this fraction VMs differ in it."""

_HARMLESS = frozenset(
    {
        # Of this side alone, and from before the failover or since: they are on record, and say nothing of the replica.
        ResyncCause.ADMINISTRATOR,
        ResyncCause.TRACKING_LOST,
        ResyncCause.TRACKING_OFF,
        ResyncCause.DISK_GROWN,
        ResyncCause.DISKS_CHANGED,
        # As before the failover.
        ResyncCause.REPLICA_REQUEST,
    }
)
_SUSPECT = frozenset(
    {
        # It gave the failover up, and its disks hold what was written there.
        ResyncCause.REVERSED.value,
        # It lost the records by which it would know of the failover.
        ResyncCause.STATE_LOST.value,
        ResyncCause.HISTORY_LOST.value,
    }
)

log = structlog.get_logger(__name__)


def is_undone(record: ReplicationRecord, replica: ReplicaView, decision: Decision) -> bool:
    """Whether nothing but the undo of the failover explains what the replica tells."""
    if replica.promoted or record.recovered is not None or record.epoch == NO_EPOCH:
        return False
    if replica.epoch not in (record.epoch, record.proposed) or replica.common is not None:
        return False
    if any(code in _SUSPECT for code, _ in replica.causes) or not _is_that_copy(record, replica):
        return False
    match decision:
        case Resume() | CommitConfirmed() | GoOnWithResync() | NextRound() | RestartResync():
            return True
        case ResyncRequired(cause=cause):
            return cause in _HARMLESS
    return False


def _is_that_copy(record: ReplicationRecord, replica: ReplicaView) -> bool:
    """Whether it is the copy that was failed over, as it was by then: no other host's, and not an earlier state of it.

    What else is on record here, that tracking was lost, say, may keep a session from ever looking at that.
    """
    if (fence := record.fence) is None:
        return True
    if fence.host and fence.host != replica.host[:MAX_NAME]:
        return False
    if fence.received is None:
        return True
    before, now = fence.received.position, replica.received
    return now is not None and now.epoch == before.epoch and (now.segment, now.entry) >= (before.segment, before.entry)


@dataclass(slots=True)
class UndoWatch:
    """Looks for the undo of the failover of one VM; ``due`` is when, by the monotonic clock: at the start at once."""

    parts: Parts
    due: float = 0.0

    def put_off(self) -> None:
        """It was just told that it is failed over."""
        # Each VM at a moment of its own: after a disaster there are many.
        share = int.from_bytes(self.parts.replication.vm.vm[-4:], "big") / (1 << 32)
        self.due = self.parts.surroundings.ports.clock.monotonic() + ASK_SECONDS * (1.0 - SPREAD * share)

    async def wait(self) -> None:
        """Wait until it is time, or until something of the VM changes; then look, where it is time.

        Raises ChannelClosed with the code ``fenced`` where the VM is still failed over, perhaps by another failover.
        """
        replication, ports = self.parts.replication, self.parts.surroundings.ports
        left = self.due - ports.clock.monotonic()
        if left > 0:
            await replication.changed.wait_for(left)
            return
        connection = self.parts.tap.connection
        if connection is None or not connection.alive:
            self.due = ports.clock.monotonic() + TAP_SECONDS
            return
        self.put_off()
        try:
            await self._look()
        except (VmreplicaError, ProtocolError, OSError) as error:
            if is_fenced(error):
                raise
            log.info("whether the failover was undone can't be asked", vm=replication.vm.name, reason=str(error))

    async def _look(self) -> None:
        parts = self.parts
        seen = parts.replication.record
        async with parts.surroundings.dialing.turn(parts.address):
            await parts.tap.refresh()
            replica, decision = await look(parts)
        record = parts.replication.record
        if seen is not record or record.state is not ReplicationState.FAILED_OVER:
            return
        if is_undone(record, replica, decision):
            await leave_failover(parts.replication, resynchronize=False, undone=_text(parts, replica.host))


def _text(parts: Parts, host: str) -> str:
    name = parts.replication.vm.name
    text = f"The failover of {name} to {host} was undone there: this host is its primary again, in the same epoch."
    text += f" Whatever was written on {host} since the failover was dropped there by that order."
    if parts.moved_on():
        text += " What was written here meanwhile is kept, and is replicated."
    return text
