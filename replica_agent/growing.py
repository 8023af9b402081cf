"""Grows the replica's disks to the sizes that the primary has now, when a resync begins; they are never made smaller.

What is behind the old end is a hole until the compare has filled it. The order is: the new size is on record together
with the one that the file may still have, the file grows, that it has grown is on record. So a crash in between is told
from a file that somebody else has cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from protocol.hrl import Geometry
from replica_agent.finishing import finish
from replica_agent.parts import VmParts
from shared.events import EventId


async def grow(parts: VmParts, wanted: Sequence[Geometry]) -> None:
    """Grow those disks that are smaller than ``wanted``; ``order`` is held. Raises OSError, to be tried again."""
    sizes = {disk.index: disk.size for disk in wanted}
    known = parts.ledger.vm.disks
    grown = [
        msgspec.structs.replace(disk, size=size, before=disk.before or disk.size)
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
