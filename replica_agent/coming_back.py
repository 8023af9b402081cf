"""Disks that were removed while the VM ran on this host, and come back with an older recovery point of the other one.

Their files are in the folder still, and no part of the copy. Whoever removed a disk may need its file, so it makes room
for the copy's own, and is kept. The copy gets all of the disk anew, as of any that is added: nothing tells who has
written the old file since.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from protocol.hrl import Geometry
from replica_agent.disk_sets import changed_set, next_index
from replica_agent.finishing import finish
from replica_agent.layout import removed_folder
from replica_agent.parts import VmParts
from shared.errors import StorageError, VmreplicaError
from shared.events import EventId


async def make_room(parts: VmParts, theirs: Sequence[Geometry], number: int) -> None:
    """Move the files of those disks out of the folder that a resync is about to bring back; ``order`` is held.

    Raises StorageError where one is in use, or can't be moved; OSError. What was moved stays so: a resync that begins
    again finds no file, and has nothing to move.
    """
    vm = parts.ledger.vm
    coming = changed_set(theirs, number, vm) if vm.apart else None
    for index in sorted({disk.index for disk in coming or ()} & set(vm.apart)):
        moved = await finish(parts.ports.workers.run(_move, parts, index))
        async with parts.ledger.transaction() as draft:
            draft.vm.next_index = next_index(draft.vm)
            draft.vm.apart = [each for each in draft.vm.apart if each != index]
            aside = removed_folder(parts.layout.folder, parts.vm, 0).rpartition("/")[0]
            kept = (
                f"The file that it had here when it was removed is kept as {moved}; nothing else deletes it."
                if moved
                else f"The file that it had here is not in the way any more; what was moved aside is below {aside}."
            )
            draft.event(
                EventId.DISK_REMOVED,
                f"Disk {index} of {draft.vm.name} was removed here, and comes back from the other host. {kept}",
                cause="kept_aside",
                disk=index,
                path=moved,
            )


def _move(parts: VmParts, index: int) -> str:
    """Where the file is now, durably; empty where there is none. Blocks."""
    files, source = parts.ports.files, parts.layout.disk(index)
    if not files.exists(source):
        return ""
    with contextlib.ExitStack() as stack:
        try:
            file = files.open(source, write=True)
            stack.callback(file.close)
            # Another VM may have it by now: its next start would not find it any more.
            file.lock()
        except (VmreplicaError, OSError) as error:
            found = error.text if isinstance(error, VmreplicaError) else f"{error.strerror or error}."
            raise StorageError(
                f"Disk {index} was removed here, and comes back from the other host: its former file {source} is in "
                f"the way, and can't be moved. {found}",
                "Stop what uses that file, or move it somewhere else, on this host; then run "
                f"`vmreplica resume {parts.ledger.vm.name}` at the primary.",
            ) from error
        return _put_aside(parts, source)


def _put_aside(parts: VmParts, source: str) -> str:
    """Blocks."""
    files, seconds = parts.ports.files, int(parts.ports.clock.wall())
    folder, name = source.rsplit("/", 1)
    while files.exists(target := f"{removed_folder(parts.layout.folder, parts.vm, seconds)}/{name}"):
        # The clock was set back: what was kept before is not overwritten.
        seconds += 1
    aside, removed, storage = _parents(target)
    files.make_folder(aside)
    files.rename(source, target)
    # Where it was last: no loss of power leaves it in neither place.
    for changed in (aside, removed, storage, folder):
        files.sync_folder(changed)
    return target


def _parents(path: str) -> tuple[str, str, str]:
    first = path.rpartition("/")[0]
    second = first.rpartition("/")[0]
    return first, second, second.rpartition("/")[0]
