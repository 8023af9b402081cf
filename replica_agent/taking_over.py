"""Takes a VM over from this host's primary agent: its disks become the copy of the host that it was failed over to.

The disks stay where they are. What they differ in from the newest cut that both sides have came with the hand-over,
and is durable before the records name it. A folder that an earlier reversal left in the storage location, with the
disks in it, is taken up again.
"""

from __future__ import annotations

from protocol.position import NO_EPOCH
from replica_agent.agent import ReplicaAgent
from replica_agent.disks import BaseDisks
from replica_agent.finishing import finish
from replica_agent.handing_over import own_point, reversed_text, stand_at
from replica_agent.layout import Layout, vm_folder
from replica_agent.marks import set_aside, set_aside_text
from replica_agent.record import (
    DiskRecord,
    IdentityRecord,
    PointsRecord,
    PositionRecord,
    ReplicationRecord,
    ReversalRecord,
    VmRecord,
    lineage_records,
    plain,
)
from replica_agent.vm import ReplicaVm
from shared.errors import InvalidStateError
from shared.events import EventId, make_event
from shared.handover import HandOver, decode_ranges, is_same_file, total, write_map
from shared.map_file import Range
from shared.planning import ResyncCause
from shared.ports import Store
from shared.states import ReplicaEvent, ReplicationState, replica_transition
from shared.status import Cause


def is_taken(vm: ReplicaVm, handed: HandOver) -> bool:
    """Whether that is what an earlier order took over."""
    return vm.ledger.vm.handover == handed.id


async def take_over(agent: ReplicaAgent, handed: HandOver, ranges: bytes) -> ReplicaVm:
    """Make or take up the VM's folder, and start it. Raises VmreplicaError; nothing was taken over then."""
    if handed.to != "replica" or handed.tap_folder:
        raise InvalidStateError(f"{handed.name} is handed over to the primary agent, not to this one.")
    found = decode_ranges(ranges, handed.geometry)
    if (damaged := agent.damaged.get(handed.vm_id)) is not None:
        raise damaged.error
    known = agent.vms.get(handed.vm_id)
    empty = False
    if known is not None:
        folder, state = known.parts.layout.folder, known.ledger.replication.state
        promotion, empty = known.ledger.promotion, known.ledger.replication.epoch == NO_EPOCH
        if not empty and (promotion is None or not promotion.handed_over):
            raise InvalidStateError(
                f"The replica agent of this host keeps a copy of {handed.name} already.",
                f"Look at `vmreplica status {handed.name} --role replica`; remove that copy if it is of no use.",
            )
    else:
        folder, state = _new_folder(agent, handed), ReplicationState.DISABLED
    # Judged before anything is touched.
    replica_transition(state, ReplicaEvent.TAKEN_OVER)
    layout = Layout(folder)
    disks = [
        DiskRecord(
            index=disk.index,
            uuid=bytes.fromhex(disk.uuid),
            size=disk.size,
            path="" if disk.path == layout.disk(disk.index) else disk.path,
        )
        for disk in handed.disks
    ]
    identities = await finish(agent.ports.workers.run(_prepare, agent, layout, handed, disks, found))
    own = {disk.index for disk in disks}
    if known is not None:
        # What was kept here of disks that were removed while this was a copy: no point has them any more.
        own |= {disk.index for disk in known.ledger.vm.former}
        own |= {disk.index for disk in known.ledger.vm.disks} if empty else set()
    apart = await finish(agent.ports.workers.run(_apart, agent, layout, own))
    unused = _unused(known, handed) if known is not None and empty else []

    async def write(store: Store) -> None:
        await _write(store, agent, handed, disks, identities, found, state, apart)
        await agent.ports.workers.run(_remove, agent, unused)

    return await agent.replace(handed.vm_id, folder, write)


def _unused(known: ReplicaVm, handed: HandOver) -> list[str]:
    """Disks that were made for the other host's first connection, before this order came, and never copied to."""
    made = {known.parts.disks.path(disk.index) for disk in known.parts.disks.geometry}
    return sorted(made - {disk.path for disk in handed.disks})


def _remove(agent: ReplicaAgent, paths: list[str]) -> None:
    """Blocks."""
    for path in paths:
        agent.ports.files.remove(path)


def _new_folder(agent: ReplicaAgent, handed: HandOver) -> str:
    """Where the VM's copy is to be: by the entry for the host that it was failed over to, else the first that fits."""
    grants = [grant for grant in agent.sessions.authorization.grants if grant.allows(handed.vm_id)]
    named = [grant for grant in grants if grant.name and grant.name.lower() == handed.peer.lower()]
    if not grants:
        raise InvalidStateError(
            f"No [[authorize]] entry of this host's replica agent is for {handed.name}.",
            f"Add one for {handed.peer or 'the host that the VM was failed over to'}, and reload the agent.",
        )
    storage = (named or grants)[0].storage
    agent.storages.require(storage)
    return vm_folder(storage, handed.vm_id)


def _prepare(
    agent: ReplicaAgent, layout: Layout, handed: HandOver, disks: list[DiskRecord], found: dict[int, list[Range]]
) -> list[IdentityRecord]:
    """Everything that the records will rely on. Blocks. Raises InvalidStateError where a disk is not as it was left."""
    files = agent.ports.files
    for folder in (layout.folder, layout.spool, layout.resyncs):
        files.make_folder(folder)
    paths = {disk.index: disk.path for disk in disks if disk.path}
    opened = BaseDisks(files, layout, handed.geometry, paths=paths)
    opened.open()
    try:
        for disk in handed.disks:
            if not is_same_file(disk, opened.file(disk.index).identity()):
                raise InvalidStateError(
                    f"{disk.path} was changed since its tap was stopped.",
                    "Find out who writes it; then run `vmreplica reverse` again.",
                    code="disk_changed",
                )
        opened.sync_all()
        identities = opened.identities()
    finally:
        opened.close()
    write_map(files, layout.doubt, handed.vm_id, handed.geometry, found)
    # A tap that served the disks from here before has left a state that means nothing any more.
    files.remove_tree(layout.tap)
    files.remove(layout.reverse_map)
    files.sync_folder(layout.folder)
    files.sync_folder(layout.folder.rpartition("/")[0])
    return identities


def _apart(agent: ReplicaAgent, layout: Layout, own: set[int]) -> list[int]:
    """Indexes of the disk files in the folder that are not this agent's ``own``: they were removed from the VM while it
    ran on them here. Blocks.
    """
    names = (layout.read_disk(name) for name in agent.ports.files.list(layout.folder))
    return sorted({index for index in names if index is not None and index not in own})


async def _write(
    store: Store,
    agent: ReplicaAgent,
    handed: HandOver,
    disks: list[DiskRecord],
    identities: list[IdentityRecord],
    found: dict[int, list[Range]],
    before: ReplicationState,
    apart: list[int],
) -> None:
    """All records in one transaction, in the place of whatever was there."""
    clock, now = agent.ports.clock, agent.ports.clock.wall()
    after = replica_transition(before, ReplicaEvent.TAKEN_OVER)
    common = PositionRecord.of(handed.common.position) if handed.common is not None else None
    size = total(found)
    text = reversed_text(common, size, handed.reason)
    here = handed.here.position if handed.here is not None else own_point(agent.ports.random.bytes(16), handed.vm_id)
    replication = ReplicationRecord(
        state=after,
        epoch=bytes.fromhex(handed.epoch),
        lineage=lineage_records(handed.ancestors),
        causes=[Cause(code=ResyncCause.REVERSED.value, text=text, time=now)],
        interval_seconds=handed.interval_seconds,
        peer_host=handed.peer,
        reversal=ReversalRecord(common=common, bytes=size) if common is not None else None,
    )
    written = max((disk.mtime_ns for disk in handed.disks), default=0) / 1e9
    stand_at(replication, here, written or now, identities, clock.boot_id())
    vm = VmRecord(
        vm=handed.vm_id,
        name=handed.name,
        disks=disks,
        created_time=now,
        settings=handed.settings,
        handover=handed.id,
        disk_set=handed.disk_set,
        next_index=handed.next_index,
        apart=apart,
    )
    points = PointsRecord()
    if handed.written or size:
        text = f"{text} {set_aside_text(set_aside(points, here, now))}"
    events = [
        make_event(
            EventId.REVERSED,
            f"{handed.name} was taken over from the primary agent of this host, which keeps its copy now. {text}",
            time=now,
            cause=ReplicaEvent.TAKEN_OVER.value,
        ),
        make_event(
            EventId.STATE_CHANGED,
            f"{before.title} -> {after.title}: {ReplicaEvent.TAKEN_OVER.value}.",
            time=now,
            cause=ReplicaEvent.TAKEN_OVER.value,
            before=before.title,
            after=after.title,
        ),
    ]
    changes = dict.fromkeys(store.names()) | {"vm": plain(vm), "replication": plain(replication)}
    if points.marks:
        changes["points"] = plain(points)
    await store.commit(changes, events)
