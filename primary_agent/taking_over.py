"""Takes a VM over from this host's replica agent, to which it was failed over: this host is its primary from now on.

The tap goes on where it is, so that the guest does not notice. What differs from the newest cut that the other host
sent is named by the tap's dirty map, and by the ranges that come with the hand-over (R41).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from primary_agent.enabling import check_name
from primary_agent.record import (
    DiskRecord,
    PositionRecord,
    Record,
    ReplicationRecord,
    ReversalRecord,
    TapPlace,
    VmRecord,
    lineage_records,
    plain,
)
from primary_agent.scope import REVERSE_MAP
from shared.errors import InvalidStateError, UsageError
from shared.events import EventId, make_event
from shared.handover import HandOver, decode_ranges, write_map
from shared.planning import ResyncCause
from shared.ports import Clock, FileSystem, Store
from shared.states import PrimaryEvent, ReplicationState, primary_transition
from shared.status import Cause


def plan(handed: HandOver, replica: tuple[str, int], taken: Sequence[VmRecord], now: float) -> VmRecord:
    """The record of the VM, its settings aside. Raises InvalidStateError where it can't be taken, or UsageError."""
    if handed.to != "primary" or not handed.tap_folder:
        text = f"{handed.name} is handed over to the replica agent, not to this one."
        raise InvalidStateError(text, f"Run `vmreplica reverse {handed.name}`, which brings it to the right one.")
    check_name(handed.name)
    _check_places(handed)
    paths = {disk.path for disk in handed.disks}
    for other in taken:
        if handed.name in (other.name, str(uuid.UUID(bytes=other.vm))) or other.vm == handed.vm_id:
            raise InvalidStateError(
                f"A VM named {other.name} is replicated from this host already.", "Remove it here, or rename it."
            )
        if both := paths & {disk.path for disk in other.disks}:
            raise InvalidStateError(
                f"{min(both)} is replicated already, with the VM {other.name}.",
                f"A disk is of one VM only: `vmreplica disk remove {other.name} {min(both)}`, or remove a VM.",
            )
    host, port = replica
    return VmRecord(
        vm=handed.vm_id,
        name=handed.name,
        disks=[
            DiskRecord(
                index=disk.index, uuid=bytes.fromhex(disk.uuid), path=disk.path, size=disk.size, export=disk.export
            )
            for disk in handed.disks
        ],
        replica_host=host,
        replica_port=port,
        interval_seconds=handed.interval_seconds,
        log_limit_bytes=0,
        created_time=now,
        tap=TapPlace(folder=handed.tap_folder, runtime_folder=handed.runtime_folder),
        handover=handed.id,
        disk_set=handed.disk_set,
        next_index=handed.next_index,
    )


def _check_places(handed: HandOver) -> None:
    """Both folders are the VM's own: they are written, and deleted with it. Raises UsageError."""
    identity = str(uuid.UUID(bytes=handed.vm_id))
    for path, end in ((handed.tap_folder, f"/{identity}/tap"), (handed.runtime_folder, f"/{identity}")):
        if not path.startswith("/") or not path.endswith(end) or ".." in path.split("/"):
            text = f"{path!r} is no folder of the VM {identity}."
            raise UsageError(text, "Run `vmreplica reverse`, which carries what the replica agent says.")


def is_taken(record: VmRecord, handed: HandOver) -> bool:
    """Whether that is what an earlier order took over."""
    return record.vm == handed.vm_id and record.handover == handed.id


def keep_ranges(files: FileSystem, folder: str, handed: HandOver, ranges: bytes) -> bool:
    """Keep what came with the hand-over in the VM's folder; whether there was anything. Blocks."""
    found = decode_ranges(ranges, handed.geometry)
    if not any(found.values()):
        return False
    write_map(files, f"{folder}/{REVERSE_MAP}", handed.vm_id, handed.geometry, found)
    return True


async def create(store: Store, vm: VmRecord, handed: HandOver, clock: Clock, *, mapped: bool) -> None:
    """Write the first records."""
    state = primary_transition(ReplicationState.DISABLED, PrimaryEvent.TAKEN_OVER)
    common = handed.common.position if handed.common is not None else None
    if common is not None:
        text = f"The direction was reversed: what either side changed since cut {common} is compared."
    else:
        text = f"The direction was reversed, and whole disks are compared, since {handed.reason}."
    now = clock.wall()
    replication = ReplicationRecord(
        state=state,
        epoch=bytes.fromhex(handed.epoch),
        lineage=lineage_records(handed.ancestors),
        causes=[Cause(code=ResyncCause.REVERSED.value, text=text, time=now, evidence={"common": str(common)})],
        reversal=ReversalRecord(common=PositionRecord.of(common), mapped=mapped) if common is not None else None,
        peer_host=handed.peer,
    )
    events = [
        make_event(
            EventId.REVERSED,
            f"{vm.name} was taken over from the replica agent of this host, which is its primary now; its replica is "
            f"{vm.replica}. {text}",
            time=now,
            cause=PrimaryEvent.TAKEN_OVER.value,
        ),
        make_event(
            EventId.STATE_CHANGED,
            f"{vm.name}: {ReplicationState.DISABLED.title} -> {state.title}.",
            time=now,
            cause=PrimaryEvent.TAKEN_OVER.value,
            before=ReplicationState.DISABLED.title,
            after=state.title,
        ),
    ]
    records: dict[str, Record] = {"vm": vm, "replication": replication}
    await store.commit({name: plain(record) for name, record in records.items()}, events)
