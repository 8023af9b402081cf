"""What a copy tells on whose disks the VM ran before a reversal: a cut that both sides have, and what is in doubt.

The disks are as of the common cut but in the ranges of ``doubt.map`` (R41). A primary that was failed over to compares
these beside what it changed itself. The first commit makes all of it void.
"""

from __future__ import annotations

import msgspec

from protocol.messages import ResyncKind, WirePosition
from protocol.position import NO_EPOCH, Lineage, knows
from replica_agent.parts import VmParts
from replica_agent.record import AncestorRecord, ReplicationRecord, ResyncRecord
from shared.handover import read_map
from shared.map_file import MapDamagedError, Range
from shared.planning import ResyncCause


def common_of(record: ReplicationRecord) -> WirePosition | msgspec.UnsetType:
    """The common cut, where nothing else is known that is wrong with the disks."""
    if record.reversal is None or record.suspect is not None or record.reread:
        return msgspec.UNSET
    if any(cause.code != ResyncCause.REVERSED.value for cause in record.causes):
        return msgspec.UNSET
    return WirePosition.of(record.reversal.common.position)


def through_of(record: ReplicationRecord, parent: bytes, lineage: Lineage) -> AncestorRecord | None:
    """The failover by which the primary's baseline ``parent`` came from ours, as its ``lineage`` tells it.

    It came from an earlier baseline than ours where an older point was promoted; the lineage names ours as well then.
    """
    if record.reversal is None or record.epoch in (NO_EPOCH, parent):
        return None
    step = next((each for each in lineage if each.epoch == parent), None)
    if step is None or not (step.parent == record.epoch or knows(lineage, record.epoch)):
        return None
    return AncestorRecord(epoch=step.epoch, parent=step.parent, parent_segment=step.parent_segment)


def read_doubt(parts: VmParts, resync: ResyncRecord) -> dict[int, list[Range]]:
    """What a bounded resync has to compare for this side's sake, of the disks that stay. Blocks.

    A map that can't be read doubts everything.
    """
    ledger = parts.ledger
    if resync.kind is not ResyncKind.BOUNDED or ledger.replication.reversal is None:
        return {}
    try:
        found = read_map(parts.ports.files, parts.layout.doubt, parts.vm, ledger.vm.geometry)
    except (MapDamagedError, OSError):
        found = {disk.index: [(0, disk.size)] for disk in ledger.vm.disks}
    staying = {disk.index for disk in (ledger.vm.disks if resync.disks is None else resync.disks)}
    return {index: ranges for index, ranges in found.items() if index in staying}
