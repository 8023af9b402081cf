"""Grows the replica's disks to the sizes that the primary has now, when a resync begins; they are never made smaller.

What is behind the old end is a hole until the compare has filled it, and no point from before has it. The order is: the
new size is on record together with the one that the file may still have, the file grows, that it has grown is on
record. So a crash in between is told from a file that somebody else has cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from protocol.hrl import Geometry
from protocol.messages import ErrorCode
from protocol.position import NO_EPOCH
from replica_agent.finishing import finish
from replica_agent.parts import VmParts
from replica_agent.record import DiskRecord, FormerSizeRecord
from replica_agent.refusals import Refusal
from replica_agent.space import require_room
from shared.events import EventId


async def require_growth(parts: VmParts, wanted: Sequence[Geometry], room: int) -> None:
    """Whether the disks could grow to ``wanted`` by a resync that begins now, which takes ``room`` bytes at once.

    Raises Refusal or NoSpaceError with the reason. Nothing is changed.
    """
    sizes = {disk.index: disk.size for disk in wanted}
    larger = {disk.index: size for disk in parts.ledger.vm.disks if (size := sizes.get(disk.index, 0)) > disk.size}
    if larger:
        await finish(parts.ports.workers.run(_require_growth, parts, larger, room))


def _require_growth(parts: VmParts, larger: dict[int, int], room: int) -> None:
    """Blocks."""
    files = parts.ports.files
    require_room(files, parts.layout.folder, room, parts.surroundings.reserve)
    for index, size in sorted(larger.items()):
        path = parts.disks.path(index)
        trial = f"{path.rpartition('/')[0]}/.vmreplica-{parts.uuid}.size"
        try:
            files.remove(trial)
            file = files.open(trial, write=True, create=True, exclusive=True)
        except OSError:
            # Where the disk alone may be written this can't be known before.
            continue
        try:
            file.truncate(size)
        except OSError as error:
            raise Refusal(
                ErrorCode.STORAGE,
                f"Disk {index} at {path} can't grow to {size} bytes here: {error.strerror or error}.",
                "Move the storage location to a file system that takes files of this size, or choose less.",
            ) from error
        finally:
            file.close()
            files.remove(trial)


def _grown(disk: DiskRecord, size: int, *, keep: bool) -> DiskRecord:
    """``keep``: there are points, which keep the size that it had; until the commit that is the newest one as well."""
    sizes = disk.sizes
    if keep and not any(former.until == NO_EPOCH for former in sizes):
        sizes = [*sizes, FormerSizeRecord(size=disk.size)]
    return msgspec.structs.replace(disk, size=size, before=disk.before or disk.size, sizes=sizes)


async def grow(parts: VmParts, wanted: Sequence[Geometry]) -> None:
    """Grow those disks that are smaller than ``wanted``; ``order`` is held.

    Raises Refusal, NoSpaceError or OSError, to be tried again; a disk whose file can't grow has its size from before.
    """
    sizes = {disk.index: disk.size for disk in wanted}
    known = parts.ledger.vm.disks
    grown = [
        _grown(disk, size, keep=parts.ledger.replication.epoch != NO_EPOCH)
        if (size := sizes.get(disk.index, 0)) > disk.size
        else disk
        for disk in known
    ]
    if grown != known:
        await require_growth(parts, wanted, 0)
        async with parts.ledger.transaction() as draft:
            draft.vm.disks = grown
            for old, disk in zip(known, grown, strict=True):
                if disk.size > old.size:
                    draft.event(
                        EventId.DISK_RESIZED,
                        f"Disk {disk.index} grows from {old.size} to {disk.size} bytes, as it did at the primary.",
                        disk=disk.index,
                        before_bytes=old.size,
                        size_bytes=disk.size,
                    )
    if not any(disk.before for disk in parts.ledger.vm.disks):
        return
    parts.disks.resize(parts.ledger.vm.geometry)
    try:
        await finish(parts.ports.workers.run(parts.disks.open))
        await finish(parts.ports.workers.run(parts.disks.grow))
    except OSError as error:
        await finish(_take_back(parts, error))
        raise
    await have_grown(parts)


async def have_grown(parts: VmParts) -> None:
    """Put on record that the files have the sizes of their disks, which are open; their times were set by us."""
    growing = {disk.index for disk in parts.ledger.vm.disks if disk.before}
    if not growing:
        return
    found = {each.index: each for each in await finish(parts.ports.workers.run(parts.disks.identities))}
    async with parts.ledger.transaction() as draft:
        draft.vm.disks = [msgspec.structs.replace(disk, before=0) for disk in draft.vm.disks]
        if (known := draft.replication.identities) is not None:
            draft.replication.identities = [found[e.index] if e.index in growing else e for e in known]


async def go_on_growing(parts: VmParts) -> None:
    """At a start: files that a death kept from growing grow now, or their disks have the sizes from before.

    Else a file that can't grow would keep the whole VM from being opened, although no point needs it larger. Raises
    VmreplicaError.
    """
    if any(disk.before for disk in parts.ledger.vm.disks):
        try:
            await finish(parts.ports.workers.run(parts.disks.open))
        except OSError as error:
            await finish(_take_back(parts, error))


async def _take_back(parts: VmParts, error: OSError) -> None:
    """Disks whose files could not grow have the sizes from before on record: what is served must fit its file."""
    small = await parts.ports.workers.run(_ungrown, parts)
    async with parts.ledger.transaction() as draft:
        draft.vm.disks = [_kept(disk) if disk.index in small else disk for disk in draft.vm.disks]
        for disk in draft.vm.disks:
            if disk.index in small:
                text = f"Disk {disk.index} keeps its {disk.size} bytes: {error.strerror or error}."
                draft.event(EventId.DISK_RESIZED, text, cause="taken_back", disk=disk.index, size_bytes=disk.size)
    parts.disks.resize(parts.ledger.vm.geometry)


def _ungrown(parts: VmParts) -> set[int]:
    """The disks whose files have the size from before. Blocks."""
    small = set()
    for disk in parts.ledger.vm.disks:
        if disk.before:
            try:
                file = parts.ports.files.open(parts.disks.path(disk.index))
            except OSError:
                # Whoever opens the disks will say so.
                continue
            try:
                if file.size() == disk.before:
                    small.add(disk.index)
            finally:
                file.close()
    return small


def _kept(disk: DiskRecord) -> DiskRecord:
    """With the size from before; one that points still have of an earlier growth, which was not committed, stays."""
    sizes = disk.sizes
    if sizes and sizes[-1] == FormerSizeRecord(size=disk.before):
        sizes = sizes[:-1]
    return msgspec.structs.replace(disk, size=disk.before, before=0, sizes=sizes)
