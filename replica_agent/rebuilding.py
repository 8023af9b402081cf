"""Rebuilds the database of a VM whose own is damaged or missing, from what is left of its copy (rows A24, R13, R15).

What is rebuilt claims nothing: the disks may be between two points, so nothing is applied, exported or promoted until
a compare of everything has committed. Only a promotion is believed, since a fence must hold (I8): the description says
so, or a folder of the tap is there. It was never served unless that folder exists, and no administrator was told of it
unless the description had been written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from protocol.position import NO_EPOCH, Ancestor, extend
from replica_agent.description import SECTOR
from replica_agent.layout import Layout
from replica_agent.record import (
    DiskRecord,
    PromotionRecord,
    Record,
    ReplicationRecord,
    VmRecord,
    lineage_records,
    plain,
)
from replica_agent.remains import Remains, read_remains
from shared.errors import InvalidStateError, StorageError
from shared.events import EventId, make_event
from shared.planning import ResyncCause
from shared.ports import Ports
from shared.states import ReplicationState
from shared.status import Cause

RECOVERABLE = frozenset({"store_damaged"})
"""Codes of errors that a rebuilt database heals; a newer version's, another VM's or a busy one is not replaced."""

_S = ReplicationState


@dataclass(slots=True)
class Rebuilt:
    """The records of a VM, and the events that tell of them."""

    vm: VmRecord
    replication: ReplicationRecord
    promotion: PromotionRecord | None
    events: list[dict[str, Any]]

    @property
    def records(self) -> dict[str, Any]:
        """As a store keeps them."""
        found: dict[str, Record | None] = {
            "vm": self.vm,
            "replication": self.replication,
            "promotion": self.promotion,
        }
        return {name: plain(record) for name, record in found.items() if record is not None}


async def rebuild(ports: Ports, folder: str, vm: bytes, host: str, reason: str, order: dict[str, Any]) -> None:
    """Put a rebuilt database in the place of the damaged one in ``folder``, which is kept aside. Crash-safe.

    ``reason`` is what is wrong with the old one, ``order`` who asked, for the event. Raises InvalidStateError or
    StorageError where too little is left; nothing was changed then.
    """
    layout = Layout(folder)
    remains = await ports.workers.run(read_remains, ports.files, layout, vm)
    now = ports.clock.wall()
    rebuilt = conclude(remains, vm, layout, host=host, fresh_epoch=ports.random.bytes(16), now=now)
    state = rebuilt.replication.state
    text = (
        f"The state of {rebuilt.vm.name} was rebuilt from the files of its copy, since the old one was lost: {reason}"
    )
    data = {**order, **remains.evidence}
    told = make_event(
        EventId.RECOVERED,
        text,
        time=now,
        cause=ResyncCause.STATE_LOST.value,
        before=ReplicationState.ERROR.title,
        after=state.title,
        data=data,
    )
    await ports.stores.rebuild(folder, rebuilt.records, [told, *rebuilt.events])


def conclude(remains: Remains, vm: bytes, layout: Layout, *, host: str, fresh_epoch: bytes, now: float) -> Rebuilt:
    """The records that follow from what is left. ``fresh_epoch`` is for a promotion whose epoch nothing tells.

    Raises InvalidStateError where nothing names the disks, StorageError where they are not what is named.
    """
    record = _vm_record(remains, vm, layout, now)
    _check_disks(remains, record, layout)
    described = remains.description
    replication = ReplicationRecord()
    if described is not None:
        replication.epoch, replication.lineage = described.epoch, described.lineage
        replication.interval_seconds, replication.peer_host = described.interval_seconds, described.peer_host
    # Whether a sync of the disks failed, nobody knows where there is no description: then everything is sent (R17).
    replication.reread = described is None or described.reread
    promotion = _promotion(remains, host=host, fresh_epoch=fresh_epoch, now=now)
    if promotion is not None:
        if replication.epoch != promotion.epoch:
            step = Ancestor(promotion.epoch, promotion.parent, promotion.parent_segment)
            replication.lineage = lineage_records(extend(replication.ancestors, step))
            replication.epoch = promotion.epoch
        final = promotion.committed_time is not None or promotion.handed_over
        replication.state = _S.FAILED_OVER if final else _S.FAILED_OVER_WAITING_COMPLETION
    events = []
    if promotion is None or not promotion.serving:
        cause = _suspicion(remains, record.name, promoted=promotion is not None, now=now)
        if replication.epoch != NO_EPOCH:
            replication.suspect = cause
        if replication.epoch != NO_EPOCH and promotion is None:
            replication.state = ReplicationState.WAITING_FOR_START_RESYNCHRONIZE
            replication.causes = [cause]
            data = dict(cause.evidence)
            events.append(make_event(EventId.RESYNC_REQUIRED, cause.text, time=now, cause=cause.code, data=data))
    return Rebuilt(record, replication, promotion, events)


def _vm_record(remains: Remains, vm: bytes, layout: Layout, now: float) -> VmRecord:
    if remains.description is not None:
        return remains.description.vm
    if not remains.geometry:
        raise InvalidStateError(
            f"Nothing in {layout.folder} tells which disks these are: there is no description that can be believed"
            f"{f' ({remains.doubt})' if remains.doubt else ''}, and nothing received that names them.",
            "Move the folder away, and start the replica agent again: the primary then asks for a resynchronization, "
            "which makes the copy anew. The disk files can be used as they are, if nothing better is left.",
        )
    disks = [DiskRecord(index=disk.index, uuid=disk.uuid, size=disk.size) for disk in remains.geometry]
    return VmRecord(vm=vm, name=remains.name or layout.folder.rpartition("/")[2], disks=disks, created_time=now)


def _check_disks(remains: Remains, record: VmRecord, layout: Layout) -> None:
    for disk in record.disks:
        path, size = disk.path or layout.disk(disk.index), remains.disks.get(disk.index)
        if size not in (disk.size, disk.before or disk.size) or disk.size % SECTOR:
            found = "is missing" if size is None else f"has {size} bytes"
            raise StorageError(
                f"Disk {disk.index} of {disk.size} bytes {found} at {path}: the state is not rebuilt around it.",
                "Bring the file back. If it is gone, move the folder away: the primary then makes the copy anew.",
            )


def _promotion(remains: Remains, *, host: str, fresh_epoch: bytes, now: float) -> PromotionRecord | None:
    """The failover to this host, where anything says that there was one."""
    described = remains.description
    known = described.promotion if described is not None else None
    if known is not None:
        # The folder of the tap is made only when the disks stand at the promoted cut.
        known.serving = known.serving or remains.promoted
        return known
    if not remains.promoted:
        return None
    return PromotionRecord(
        epoch=remains.tap_epoch or fresh_epoch,
        parent=described.epoch if described is not None else NO_EPOCH,
        parent_segment=0,
        entry=0,
        time=now,
        host=host,
        serving=True,
        layered=remains.layered,
    )


def _suspicion(remains: Remains, name: str, *, promoted: bool, now: float) -> Cause:
    if promoted:
        text = (
            f"{name} was failed over, and its state was lost before its disks were at the promoted cut: what is "
            "between cannot be told any more. They are not served."
        )
        remedy = (
            "If the old host still runs the VM, remove the VM here (its disks are kept aside) and replicate from there "
            "again. Otherwise that also sets free the disk files, which may lack or mix what was written last."
        )
    else:
        text = f"The state of {name} was lost and rebuilt: its disks may be between two points."
        remedy = "Resynchronize at the primary."
    return Cause(code=ResyncCause.STATE_LOST.value, text=text, time=now, remedy=remedy, evidence=remains.evidence)
