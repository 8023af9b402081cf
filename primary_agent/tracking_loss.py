"""A loss of tracking as a cause on record: the evidence of the tap, and how much the dirty map bounds the compare to.

One loss is one cause, whoever hears of it first, and however often.
"""

from __future__ import annotations

from typing import Any

import msgspec

from primary_agent.parts import Parts
from primary_agent.record import VmRecord
from primary_agent.resyncing import is_told
from primary_agent.tap_link import Connection
from protocol.position import NO_EPOCH
from shared.events import EventId
from shared.planning import ResyncCause
from shared.rates import size_text
from shared.status import Cause
from shared.tap_control import Lost, Tracking


async def note_loss(parts: Parts) -> None:
    """Put on record that the tap does not track the baseline, whether or not there is a session (I3)."""
    replication, connection = parts.replication, parts.tap.connection
    record = replication.record
    if record.epoch == NO_EPOCH or record.resync is not None or connection is None:
        return
    if connection.tracks(record.epoch) or not connection.alive or is_told(replication, connection):
        return
    lost = connection.lost
    if connection.tracking in (Tracking.LOST, Tracking.MAP) and lost is not None:
        if _cause_of(record.causes, lost) is None:
            text, evidence = lost.text, evidence_of(replication.vm, connection, lost)
            await replication.require_resync(ResyncCause.TRACKING_LOST, text, evidence)
    else:
        text = f"The tap does not track the baseline {record.epoch.hex()[:8]}: tracking is {connection.tracking}."
        await replication.require_resync(ResyncCause.TRACKING_OFF, text, {"tracking": connection.tracking.value})


def evidence_of(vm: VmRecord, connection: Connection, lost: Lost) -> dict[str, Any]:
    """What the tap found, as a cause keeps it; ``changes`` names each disk that is not as the tap left it."""
    evidence: dict[str, Any] = {
        "reason": lost.reason.value,
        "time": lost.time,
        "bounded": connection.tracking is Tracking.MAP,
    }
    if lost.changes:
        paths = {disk.index: disk.path for disk in vm.disks}
        evidence["changes"] = [
            {
                "disk": each.disk,
                "path": paths.get(each.disk, ""),
                "part": each.part.value,
                "old": each.old,
                "new": each.new,
            }
            for each in lost.changes
        ]
    return evidence


async def note_bound(parts: Parts) -> None:
    """Once the dirty map is whole, put down to how much it bounds the compare: an event, and part of the cause."""
    replication, connection = parts.replication, parts.tap.connection
    if connection is None or connection.tracking is not Tracking.MAP or connection.lost is None:
        return
    doubt, cause = connection.status.doubt, _cause_of(replication.record.causes, connection.lost)
    if doubt is None or not doubt.complete or cause is None or "doubt_bytes" in cause.evidence:
        return
    disk_bytes = sum(disk.size for disk in replication.vm.disks)
    bound = {"doubt_bytes": doubt.bytes, "disk_bytes": disk_bytes}
    told = f"{size_text(doubt.bytes)} of {size_text(disk_bytes)}"
    text = f"{cause.text.rstrip('.')}. The dirty map names what changed since: {told} were in doubt when it was whole."
    event = replication.event(
        EventId.RESYNC_BOUNDED,
        f"The compare of {replication.vm.name} is bounded to what the dirty map names, {told} so far.",
        cause=cause.code,
        data=bound,
    )
    await replication.amend_cause(msgspec.structs.replace(cause, text=text, evidence=cause.evidence | bound), event)


def _cause_of(causes: list[Cause], lost: Lost) -> Cause | None:
    """The cause on record that tells of this loss."""
    for cause in causes:
        told = cause.evidence.get("reason"), cause.evidence.get("time")
        if cause.code == ResyncCause.TRACKING_LOST.value and told == (lost.reason.value, lost.time):
            return cause
    return None
