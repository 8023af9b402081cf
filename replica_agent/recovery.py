"""What the start of a VM finds in its folder, whatever the last run left: nothing is guessed, nothing is served early.

The state in the store decides; files are brought in line with it. A tail that a crash tore is cut; a file that the
state needs and that is missing or damaged makes the disks suspect, durably, and a resync is required.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from protocol.errors import LogError
from protocol.position import Position
from replica_agent.baseline import Baseline
from replica_agent.differencing import start_of_differences
from replica_agent.disk_sets import joining, remove_unnamed
from replica_agent.disks import foreign_changes
from replica_agent.finishing import finish
from replica_agent.groups import Merge
from replica_agent.growing import go_on_growing, have_grown
from replica_agent.parts import VmParts
from replica_agent.record import ResyncRecord, UndoRecord
from replica_agent.replay import Source
from replica_agent.resync import OpenResync
from replica_agent.reversal import read_doubt
from replica_agent.spool import Spool
from replica_agent.strangers import remove_strangers
from shared.errors import StorageError
from shared.events import EventId
from shared.planning import ResyncCause
from shared.status import Cause


@dataclass(slots=True)
class _Found:
    """What reading the folder brought to light."""

    spool: Spool | None = None
    merge: Merge | None = None
    resync: OpenResync | None = None
    compared_again: bool = False
    """What an initial replication had settled has to be compared again."""
    unusable: str = ""
    """Why the open resync can't go on."""
    unsynced: bool = False
    """What it has written in place may not be what would survive."""
    undo: list[UndoRecord] = field(default_factory=list)
    """Undo logs that can't be used, and ``lost`` says why."""
    lost: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


async def recover(parts: VmParts) -> None:
    """Open the disks and take over spool, differencing file and pool. Raises VmreplicaError: the VM can't run.

    Not for a VM whose disks were handed to a tap.
    """
    await go_on_growing(parts)
    found = await finish(parts.ports.workers.run(_read, parts))
    parts.applier.spool = found.spool
    parts.applier.merge = found.merge
    parts.resync = found.resync
    if found.unusable:
        await Baseline(parts).drop(found.unusable, reread=found.unsynced)
    elif found.foreign and parts.resync is not None:
        # What it has settled was compared with other disks than these.
        await Baseline(parts).drop("somebody else changed the disks meanwhile")
    elif found.compared_again:
        text = "The disks were written since the last range was settled: all ranges are compared again."
        await parts.ledger.note(EventId.RESYNC_STARTED, text, cause="written_since")
    await _keep_points(parts, found)
    await _judge(parts, found)
    await have_grown(parts)


def _read(parts: VmParts) -> _Found:
    """Blocks."""
    found = _Found()
    files, layout = parts.ports.files, parts.layout
    files.make_folder(layout.spool)
    remove_unnamed(parts)
    parts.disks.open()
    if parts.ledger.promotion is None:
        # Of a failover that was given up, or of a VM that came back: its state is about what the disks were then.
        files.remove_tree(layout.tap)
        files.remove(layout.reverse_map)
    for name in files.list(layout.folder):
        if name.endswith(".spill") or name.startswith("import-"):
            # Made by an earlier version; or by an import that a crash ended.
            files.remove(f"{layout.folder}/{name}")
    parts.pool.load()
    record = parts.ledger.resync
    if record is not None and record.end is not None:
        found.merge = _merge(parts, record)
        found.spool = parts.spool_from(parts.start_of(record.epoch))
    elif (applied := parts.ledger.replication.applied) is not None:
        found.spool = parts.spool_from(applied.position)
    if record is not None and record.end is None:
        _read_resync(parts, record, found)
    if found.spool is not None:
        found.spool.load(torn=_other_boot(parts))
        found.damaged = found.spool.damaged
    found.undo, found.lost = parts.history.found()
    replication = parts.ledger.replication
    # What was received before the state was lost is evidence until a resync has begun, and maybe all that is left.
    if replication.suspect is None or replication.suspect.code != ResyncCause.STATE_LOST or parts.ledger.resync:
        remove_strangers(
            parts, {spool.epoch for spool in (found.spool, found.resync and found.resync.tracked) if spool}
        )
    if replication.applying is None and replication.identities is not None:
        found.foreign = foreign_changes(
            replication.identities,
            parts.disks.identities(),
            same_boot=replication.boot_id == parts.ports.clock.boot_id(),
            growing={disk.index for disk in parts.ledger.vm.disks if disk.before},
        )
    return found


def _other_boot(parts: VmParts) -> bool:
    """Whether the host may have lost power since something was received: it was started since the newest point."""
    return parts.ledger.replication.boot_id != parts.ports.clock.boot_id()


def _merge(parts: VmParts, record: ResyncRecord) -> Merge:
    """The merge of a committed resync."""
    assert record.end is not None
    sources: tuple[Source, ...] = ()
    path = parts.layout.resync(record.id)
    if not record.in_place:
        assert record.differences_end is not None
        start = start_of_differences(parts.vm, record.id)
        sources = (Source(path, start, record.differences_end.position, record.differences_length),)
    return Merge(sources, record.end.position, path)


def _written_since(parts: VmParts, record: ResyncRecord) -> bool:
    """Whether a disk was written after the last range of an initial replication was settled.

    By us, mostly: blocks of the next range. Or by somebody else while nobody looked (I10): no identity of the disks is
    on record while they are being filled, so what was settled is compared again, which sends nothing that is equal.
    """
    file = parts.ports.files.open(parts.layout.resync(record.id))
    try:
        settled_ns = file.identity().mtime_ns
    finally:
        file.close()
    return any(max(disk.mtime_ns, disk.ctime_ns) > settled_ns for disk in parts.disks.identities())


def _read_resync(parts: VmParts, record: ResyncRecord, found: _Found) -> None:
    """Take over the resync that has begun and not committed."""
    opened = parts.open_resync(record, read_doubt(parts, record))
    found.resync = opened
    try:
        parts.disks.join(joining(record, parts.ledger.vm))
        if record.in_place:
            # What the process before wrote and did not settle would be told equal, and never be synced.
            found.unsynced = True
            parts.disks.sync_all()
            found.unsynced = False
        opened.differences.load()
        if record.in_place and opened.differences.settled_bytes and _written_since(parts, record):
            opened.differences.close()
            opened.differences = parts.differencing_file(record.id, opened.sizes)
            opened.differences.create()
            found.compared_again = True
        opened.tracked.load(torn=_other_boot(parts))
    except (OSError, LogError, StorageError) as error:
        opened.close()
        found.unusable = f"What was received of it can't be used any more: {error}"


async def _keep_points(parts: VmParts, found: _Found) -> None:
    """Forget the points that need an undo log which can't be used."""
    replication, history = parts.ledger.replication, parts.history
    if found.undo:
        last = max(log.last for log in found.undo)
        async with parts.ledger.transaction() as draft:
            text = f"Older recovery points are lost: {'; '.join(found.lost)}"
            draft.event(EventId.DAMAGED, text, cause="undo_damaged")
            if replication.undo is not None and replication.undo.last <= last:
                history.unguard(draft)
            left = [log for log in draft.points.logs if log.first > last]
            draft.points = msgspec.structs.replace(draft.points, logs=left)
        await history.tidy()
    history.unguarded = parts.ledger.replication.applying is not None and parts.ledger.replication.undo is None


async def _judge(parts: VmParts, found: _Found) -> None:
    """Put on record what can't be trusted."""
    replication = parts.ledger.replication
    now = parts.ports.clock.wall()
    applying = replication.applying
    if replication.suspect is None and applying is not None and not _reaches(found.spool, applying.position):
        received = found.spool.received if found.spool is not None else None
        cause = Cause(
            code="spool_damaged",
            text=f"The disks are between two points, and the log that leads to {applying.position} is not whole here.",
            time=now,
            remedy="Resynchronize at the primary.",
            evidence={"received": str(received), "damaged": found.damaged},
        )
        async with parts.ledger.transaction() as draft:
            draft.event(EventId.DAMAGED, cause.text, cause=cause.code, **cause.evidence)
            draft.require_resync(cause, suspect=True)
    elif found.foreign:
        cause = Cause(
            code="disk_changed",
            text="Somebody else changed the replica's disks: " + "; ".join(found.foreign) + ".",
            time=now,
            remedy="Find out who; then resynchronize at the primary.",
            evidence={"disks": found.foreign},
        )
        async with parts.ledger.transaction() as draft:
            draft.event(EventId.DAMAGED, cause.text, cause=cause.code)
            draft.require_resync(cause, suspect=True)
    elif found.damaged:
        cause = Cause(
            code="spool_damaged",
            text="What was received is damaged: " + "; ".join(found.damaged) + ".",
            time=now,
            remedy="Check the volume; then resynchronize at the primary.",
            evidence={"files": found.damaged},
        )
        async with parts.ledger.transaction() as draft:
            draft.event(EventId.DAMAGED, cause.text, cause=cause.code)
            draft.require_resync(cause)


def _reaches(spool: Spool | None, position: Position) -> bool:
    """Whether what was received leads to the cut ``position``."""
    if spool is None or spool.epoch != position.epoch:
        return False
    return any(segment.end == position for segment in spool.segments)
