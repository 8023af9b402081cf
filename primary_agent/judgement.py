"""What a session is decided from, and whether records that were rebuilt after a loss are proven to fit the replica."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from primary_agent.conclusions import Replan
from primary_agent.replication import Replication
from primary_agent.scope import Turned, is_bounded, is_logged
from primary_agent.tap_link import Connection, TapLink
from protocol.position import NO_EPOCH
from shared.events import EventId
from shared.planning import Decision, Resume, ResyncCause, ResyncRequired
from shared.sides import PrimaryView, ReplicaView


def view_of(replication: Replication, connection: Connection) -> PrimaryView:
    """This side as it stands, for ``decide``."""
    record, status = replication.record, connection.status
    lost = connection.lost
    return PrimaryView(
        disks=replication.vm.geometry,
        disk_set=replication.vm.disk_set,
        epoch=record.epoch,
        proposed=record.proposed,
        lineage=record.ancestors,
        tracking=connection.tracking.value,
        lost_reason=lost.text if lost is not None else "",
        log_epoch=connection.epoch or NO_EPOCH,
        first_segment=status.first_segment,
        log_end=connection.log_end(),
        acked=replication.acked.position if replication.acked is not None else None,
        # One that was open when the state was lost is void, whatever became of its commit.
        resync=replication.open_resync if record.recovered is None else None,
        required=bool(record.causes),
        rebuilt=replication.rebuilt,
        reversal=record.reversal.common.position if record.reversal is not None else None,
    )


def turned_of(replication: Replication) -> Turned | None:
    """That this side was the replica until the direction was reversed, where a cut of both sides is known."""
    record = replication.record
    return Turned(record.epoch, record.reversal.common.position) if record.reversal is not None else None


def causes_of(replication: Replication, *found: ResyncCause) -> set[str]:
    """The codes on record, and those found now, but for an administrator's order, which is no evidence of anything."""
    codes = {cause.code for cause in replication.record.causes}
    return codes | {cause.value for cause in found if cause is not ResyncCause.ADMINISTRATOR}


def is_history_lost(codes: Iterable[str]) -> bool:
    """Whether the replica may hold what is not ours: then only an administrator's order replaces it (I8)."""
    return ResyncCause.HISTORY_LOST.value in codes


async def judge_rebuilt(replication: Replication, tap: TapLink, replica: ReplicaView, decision: Decision) -> None:
    """Prove that rebuilt records fit the replica. Raises Replan where they can't: then everything has to be compared.

    The proof of the log is that the tap has exactly the cut at which the replica stands; that of a bounded compare is
    what bounds one anyway. Nothing of either rests on what was rebuilt.
    """
    cause, text, evidence = ResyncCause.STATE_LOST, "", dict[str, object]()
    match decision:
        case Resume():
            cut = replica.cut
            if cut is not None and await is_logged(tap, cut):
                await replication.prove(f"The log goes on from {cut}, where the replica stands: proven.")
                return
            text = f"The replica stands at {cut}, and this side's log does not hold exactly that cut."
        case ResyncRequired(ResyncCause.HISTORY_LOST, text, evidence):
            cause = ResyncCause.HISTORY_LOST
        case ResyncRequired(found, text, evidence):
            if await is_bounded(tap, replica, causes_of(replication, found), turned_of(replication)):
                await replication.prove("The dirty map names all that the replica may lack: proven.")
                return
    text = f"After the state of this side was lost and rebuilt nothing proves that the log fits. {text}".strip()
    await replication.distrust(cause, text, evidence)
    raise Replan("the session is planned anew")


async def learn_indexes(replication: Replication, replica: ReplicaView) -> None:
    """A disk that only the replica has was added where the VM ran before: no disk here is to get its index (I9)."""
    highest = max((disk.index for disk in replica.disks), default=-1)
    if highest < replication.vm.index_to_come:
        return
    text = f"The replica has a disk {highest}, which is not known here: a disk that is added gets a higher number."
    vm = msgspec.structs.replace(replication.vm, next_index=highest + 1)
    await replication.set_vm(vm, replication.event(EventId.SETTINGS, text, data={"next_index": vm.next_index}))
