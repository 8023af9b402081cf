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
    """Grow those disks that are smaller than ``wanted``; ``order`` is held. Raises OSError, to be tried again."""
    sizes = {disk.index: disk.size for disk in wanted}
    known = parts.ledger.vm.disks
    grown = [
        _grown(disk, size, keep=parts.ledger.replication.epoch != NO_EPOCH)
        if (size := sizes.get(disk.index, 0)) > disk.size
        else disk
        for disk in known
    ]
    if grown != known:
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
    await finish(parts.ports.workers.run(parts.disks.open))
    await finish(parts.ports.workers.run(parts.disks.grow))
    identities = await finish(parts.ports.workers.run(parts.disks.identities))
    async with parts.ledger.transaction() as draft:
        draft.vm.disks = [msgspec.structs.replace(disk, before=0) for disk in draft.vm.disks]
        if draft.replication.identities is not None:
            draft.replication.identities = identities
