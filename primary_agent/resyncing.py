"""What an order or a crash leaves of a resync at the primary, and how it is brought in line with the records.

The records come first: an order is durable before the tap or the replica hear of it. What they still hold then is told
apart from what counts by the records alone, so that it is found again after a restart of anything.
"""

from __future__ import annotations

from primary_agent.replication import Replication
from primary_agent.tap_link import Connection, TapLink
from protocol.position import NO_EPOCH
from shared.planning import ResyncCause
from shared.states import ReplicationState
from shared.tap_control import LostReason, Tracking


def is_abandoned(replication: Replication, connection: Connection) -> bool:
    """Whether the tap tracks an epoch of a resync or initial replication that is no longer on record.

    Records that were rebuilt prove nothing of the kind: the epoch may be a baseline that they do not know of.
    """
    record = replication.record
    if record.resync is not None or record.export is not None or replication.rebuilt or not connection.alive:
        return False
    if connection.tracking is not Tracking.ON or connection.tracks(record.epoch):
        return False
    # Where nothing says yet that a compare is required, this is a finding by itself.
    return bool(record.causes) or record.epoch == NO_EPOCH


async def abandon(replication: Replication, tap: TapLink) -> None:
    """Have the tap give up the log of a cancelled resync; what it knows goes to the dirty map where that bounds the
    next one (R32). Raises what the tap raises; to be repeated until it is done.
    """
    connection = tap.connection
    if connection is not None and connection.epoch is not None and is_abandoned(replication, connection):
        await connection.client.abandon(connection.epoch)
        await tap.refresh()


def is_told(replication: Replication, connection: Connection) -> bool:
    """Whether what became of tracking follows from an order to cancel, and the causes on record say all there is."""
    record, lost = replication.record, connection.lost
    if not record.causes:
        return False
    if connection.tracking is Tracking.OFF:
        return record.stopped_time is not None or record.state is ReplicationState.RESYNCHRONIZING
    if connection.tracking is not Tracking.MAP or lost is None:
        return False
    turned = any(cause.code == ResyncCause.REVERSED.value for cause in record.causes)
    return lost.reason is LostReason.ABANDONED or turned
